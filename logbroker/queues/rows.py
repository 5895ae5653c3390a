"""The rows that hold a queue's state: an ordered table, of which this module says the bytes.

Each partition of each subscription has a table of its own. Offsets, blocks and times are 8 bytes, big-endian,
so that the order of keys is that of the numbers.

    key                             value            says
    h                               HEAD             where the queue begins, and what no row speaks of yet
    m  first offset                 ENTRY, texts     a run of messages that are not done, all in one state
    d  block                        bits             which of the block's 1024 offsets are done (bit 0 is the first)
    r  rank  first offset           (none)           the run is READY, or REJECTED where the rank is 255
    l  lease end  first offset      (none)           the run is in somebody's hands until then (monotonic ms)
    a  time  first offset           (none)           the run is DELAYED until then (wall clock, ms)
    w  order key  first offset      (none)           the message is WAITING for the others of its key
    k  order key                    COUNT, owner     so many messages of the key are in the hands of this owner

``r``, ``l``, ``a`` and ``w`` are indexes over ``m``: a run has exactly one such row. Every offset from the queue's
start to below ``next_offset`` is either done or in exactly one run; of those behind it nothing is known yet.

    HEAD    0  start_offset     int64    every offset below is done
            8  next_offset      int64    no offset from here on was ever in anybody's hands
    ENTRY   0  last_offset      int64
            8  due_ms           int64    when the lease ends, or the delay; 0 where there is none
           16  state            uint8    State
           17  is_arranged      uint8    1: priority and order key are known
           18  priority         uint8
           19  delivery_count   uint16   how often it was handed out
           21  order_key        8 bytes  a hash of it, zeros for none
           29  owner_bytes      uint16   then the owner, then a note, both UTF-8
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple, Protocol

from logbroker_storage.events import BLOCK_OFFSETS as BLOCK_OFFSETS  # as the journal's blocks have it

HEAD = struct.Struct(">qq")
ENTRY = struct.Struct(">qqBBBH8sH")
COUNT = struct.Struct(">I")
NUMBER = struct.Struct(">q")

NO_KEY = bytes(8)

HEAD_KEY = b"h"
ENTRIES, DONE, RANKED, LEASED, DELAYED, WAITING, KEYS = b"m", b"d", b"r", b"l", b"a", b"w", b"k"

FIRST_RANK = 0  # not arranged yet
LAST_RANK = 254
REJECTED_RANK = 255


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


HELD = (State.ACQUIRED, State.BURYING)


class Head(NamedTuple):
    start_offset: int
    next_offset: int


class Run(NamedTuple):
    """Messages [first, last], both inclusive, that are in one state."""

    first: int
    last: int
    state: State
    delivery_count: int = 0
    due_ms: int = 0
    owner: str = ""
    note: str = ""
    is_arranged: bool = False
    priority: int = 0
    order_key: bytes = NO_KEY

    @property
    def rank(self) -> int:
        """The place among those that are READY: smaller ones come first."""
        if self.state is State.REJECTED:
            return REJECTED_RANK
        return LAST_RANK - self.priority if self.is_arranged else FIRST_RANK


def entry_key(first: int) -> bytes:
    return ENTRIES + NUMBER.pack(first)


def block_key(block: int) -> bytes:
    return DONE + NUMBER.pack(block)


def encode_run(run: Run) -> bytes:
    owner = run.owner.encode()
    fixed = ENTRY.pack(
        run.last,
        run.due_ms,
        run.state,
        run.is_arranged,
        run.priority,
        run.delivery_count,
        run.order_key,
        len(owner),
    )
    return fixed + owner + run.note.encode()


def decode_run(key: bytes, value: bytes) -> Run:
    last, due_ms, state, is_arranged, priority, count, order_key, owner_bytes = ENTRY.unpack_from(value)
    note_at = ENTRY.size + owner_bytes
    return Run(
        first=NUMBER.unpack_from(key, 1)[0],
        last=last,
        state=State(state),
        delivery_count=count,
        due_ms=due_ms,
        owner=value[ENTRY.size : note_at].decode(),
        note=value[note_at:].decode(),
        is_arranged=bool(is_arranged),
        priority=priority,
        order_key=order_key,
    )


def index_key(run: Run) -> bytes:
    """The key of the run's row in the index that its state belongs to."""
    first = NUMBER.pack(run.first)
    if run.state in HELD:
        return LEASED + NUMBER.pack(run.due_ms) + first
    if run.state is State.DELAYED:
        return DELAYED + NUMBER.pack(run.due_ms) + first
    if run.state is State.WAITING:
        return WAITING + run.order_key + first
    return RANKED + bytes([run.rank]) + first


def first_of_index(key: bytes) -> int:
    """The first offset of the run that a row of any index stands for."""
    first: int = NUMBER.unpack(key[-NUMBER.size :])[0]
    return first
