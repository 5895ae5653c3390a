"""The rows that hold a queue's state: an ordered table, of which this module says the bytes.

Each partition of each subscription has a table of its own. Offsets, blocks and times are 8 bytes, big-endian,
so that the order of keys is that of the numbers.

    key                             value            says
    h                               HEAD             where the queue begins, and what no row speaks of yet
    m  first offset                 ENTRY, texts     a run of messages that are not done, all in one state
    d  block                        bits             which of the block's 1024 offsets are done (bit 0 is the first)
    r  rank  first offset           (none)           the run is READY, or REJECTED where the rank is 255
    l  lease end  first offset      (none)           the run is ACQUIRED or BURYING until then (monotonic ms)
    o  lease end  first offset      (none)           the run is ARRANGING until then (monotonic ms)
    a  time  first offset           (none)           the run is DELAYED until then (wall clock, ms)
    w  order key  first offset      (none)           the message is WAITING for the others of its key
    t  first offset                 (none)           the run was tried in vain, or is delayed by a consumer: it lasts
    k  order key                    COUNT, owner     so many messages of the key are in the hands of this owner
                                    COUNT 0, offset  none is; this one is READY
    u  first offset                 see undecided    settled for a transaction that is not decided yet

``r``, ``l``, ``o``, ``a`` and ``w`` are indexes over ``m``: a run has exactly one such row, and one in ``t`` if
something of it is to last. Every offset from the queue's start to below ``next_offset`` is either done or in exactly
one run; of those behind it nothing is known yet.
A block's ``d`` row is there, if only empty, as soon as anything of the block was journaled.

    HEAD    0  start_offset     int64    every offset below is done
            8  next_offset      int64    no offset from here on was ever in anybody's hands
    ENTRY   0  last_offset      int64
            8  due_ms           int64    when the lease ends, or the delay; 0 where there is none
           16  state            uint8    State
           17  is_arranged      uint8    1: priority and order key are known
           18  is_postponed     uint8    1: the delay is a consumer's wish, not the message's own
           19  priority         uint8
           20  delivery_count   uint16   how often it was handed out
           22  order_key        8 bytes  a hash of it, zeros for none
           30  owner_bytes      uint16   then the owner, then a note, both UTF-8
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple, Protocol

import msgspec
from msgspec.structs import replace

from logbroker_storage.events import BLOCK_OFFSETS as BLOCK_OFFSETS  # as the journal's blocks have it

HEAD = struct.Struct(">qq")
ENTRY = struct.Struct(">qqBBBBH8sH")
COUNT = struct.Struct(">I")
NUMBER = struct.Struct(">q")
RANKED_KEY = struct.Struct(">cBq")
TIMED_KEY = struct.Struct(">cqq")

NO_KEY = bytes(8)
MAX_DELIVERY_COUNT = 0xFFFF

HEAD_KEY = b"h"
ENTRIES, DONE, KEYS = b"m", b"d", b"k"
RANKED, LEASED, LOOKED_AT, DELAYED, WAITING, TRIED = b"r", b"l", b"o", b"a", b"w", b"t"

SCAN_ROWS = 1000  # at a time

Range = tuple[int, int]  # first and last offset

FIRST_RANK = 0  # not arranged yet
LAST_RANK = 254
REJECTED_RANK = 255
MAX_PRIORITY = LAST_RANK - FIRST_RANK - 1


class Rows(Protocol):
    """An ordered table of bytes; one transaction's view of it."""

    def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None:
        """Nothing happens when it is not there."""

    def first(self, begin: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """The first *limit* rows with begin <= key < end, ascending."""

    def floor(self, begin: bytes, key: bytes) -> tuple[bytes, bytes] | None:
        """The last row with begin <= its key <= *key*."""


class State(enum.IntEnum):
    """What may be with messages that are not done."""

    READY = 0  # to be handed out
    ACQUIRED = 1  # in the hands of an owner, until the lease ends
    DELAYED = 2  # to be handed out later
    WAITING = 3  # for the others of its order key
    REJECTED = 4  # to be buried: it goes to the dead letter topic, if there is one
    BURYING = 5  # in the hands of an owner who does that
    ARRANGING = 6  # in the hands of an owner who looks at what they ask for: no delivery


STATES = tuple(State)
INDEX_OF_STATE = (RANKED, LEASED, DELAYED, WAITING, RANKED, LEASED, LOOKED_AT)


class Head(NamedTuple):
    start_offset: int
    next_offset: int


class Run(msgspec.Struct, frozen=True):
    """Messages [first, last], both inclusive, that are in one state."""

    first: int
    last: int
    state: State
    delivery_count: int = 0
    due_ms: int = 0
    owner: str = ""
    note: str = ""
    is_arranged: bool = False
    is_postponed: bool = False
    priority: int = 0
    order_key: bytes = NO_KEY

    @property
    def size(self) -> int:
        """How many messages."""
        return self.last - self.first + 1

    @property
    def is_rejected(self) -> bool:
        return self.state is State.REJECTED or self.state is State.BURYING

    @property
    def vain_deliveries(self) -> int:
        """How many deliveries have ended in anything but acceptance: one that goes on does not count yet."""
        return self.delivery_count - 1 if self.state is State.ACQUIRED else self.delivery_count

    @property
    def lasts(self) -> bool:
        """Whether anything of it is to be journaled. A delay that the message asks for is found in it again."""
        in_vain = 1 if self.state is State.ACQUIRED else 0
        return self.delivery_count > in_vain or self.is_postponed or self.is_rejected

    @property
    def rank(self) -> int:
        """The place among those that are READY: smaller ones come first."""
        if self.state is State.REJECTED:
            return REJECTED_RANK
        return LAST_RANK - self.priority if self.is_arranged else FIRST_RANK


def as_delivered(run: Run) -> Run:
    """A run out of somebody's hands as one that was delivered: so is a look, where it is to count."""
    if run.state is State.ACQUIRED:
        return run
    return replace(run, state=State.ACQUIRED, delivery_count=min(run.delivery_count + 1, MAX_DELIVERY_COUNT))


def as_undelivered(run: Run) -> Run:
    """A run out of somebody's hands as if it had not been handed out."""
    if run.state is State.ARRANGING:
        return run
    return replace(run, delivery_count=max(run.delivery_count - 1, 0))


def entry_key(first: int) -> bytes:
    return ENTRIES + NUMBER.pack(first)


def tried_key(first: int) -> bytes:
    return TRIED + NUMBER.pack(first)


def block_key(block: int) -> bytes:
    return DONE + NUMBER.pack(block)


def encode_run(run: Run) -> bytes:
    owner = run.owner.encode()
    fixed = ENTRY.pack(
        run.last,
        run.due_ms,
        run.state,
        run.is_arranged,
        run.is_postponed,
        run.priority,
        run.delivery_count,
        run.order_key,
        len(owner),
    )
    return fixed + owner + run.note.encode()


def decode_run(key: bytes, value: bytes) -> Run:
    last, due_ms, state, is_arranged, is_postponed, priority, count, order_key, owner_bytes = (
        ENTRY.unpack_from(value)
    )
    note_at = ENTRY.size + owner_bytes
    return Run(
        NUMBER.unpack_from(key, 1)[0],
        last,
        STATES[state],
        count,
        due_ms,
        value[ENTRY.size : note_at].decode(),
        value[note_at:].decode(),
        bool(is_arranged),
        bool(is_postponed),
        priority,
        order_key,
    )


def index_key(run: Run) -> bytes:
    """The key of the run's row in the index that its state belongs to."""
    index = INDEX_OF_STATE[run.state]
    if index == RANKED:
        return RANKED_KEY.pack(RANKED, run.rank, run.first)
    if index == WAITING:
        return WAITING + run.order_key + NUMBER.pack(run.first)
    return TIMED_KEY.pack(index, run.due_ms, run.first)


def first_of_index(key: bytes) -> int:
    """The first offset of the run that a row of any index stands for."""
    first: int = NUMBER.unpack(key[-NUMBER.size :])[0]
    return first
