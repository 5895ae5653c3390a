"""A batch on its way: the records of one partition between ``send`` and the log.

    state     meaning                                              next
    OPEN      takes records                                        CLOSED
    CLOSED    complete; waits for its turn to be appended          WRITTEN, FAILED
    WRITTEN   in the page cache; its offsets are known             SETTLED, FAILED
    SETTLED   acknowledged as ``acks`` asks                        -
    FAILED    ``error`` says why, and whether it may be there      -

Values are kept as columns: most records are a value and nothing else, so a batch is a list of values and
runs of timestamps ``(first_index, timestamp_ms)``. The first record with a key or headers
turns the batch into a list of whole records.

**The lock-free append.** ``Producer.send`` adds most records without a lock and without looking at the
clock: an uncontended ``threading.Lock`` costs 0.1 µs here and 0.25 µs in a ``with``, ``time.time()`` 0.1 µs,
the whole short way 0.3 µs. It may leave out the lock because CPython lets another thread (or a signal
handler) in only where a function is called or a loop jumps back: reading and writing ``count`` and appending
to the list have neither between them, so they are one step for everybody else. It may leave out the clock
and the bytes because the long way has granted it so many records: ``grant`` allows indices below
``granted_until``, of keys, values and headers up to ``granted_bytes`` each, so that the batch's limit holds, and no
more than come in within ``LOOK_S`` at the present pace. ``freeze`` takes the grant back, in one step as
well; what it sees is complete. Without a GIL nothing is granted (see ``Producer``). ``encode`` checks that
``count`` and the lists agree.

A timestamp is therefore true to ``LOOK_S``, but for records that follow a burst after a pause: they may
be stamped as early as the burst, at most ``linger`` before.

Guards: the producer's lock for everything while OPEN (but for the lock-free append above) and for ``state``;
once CLOSED a batch belongs to the thread that holds its queue's ``sending`` lock.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

from logbroker_storage.errors import LogbrokerError
from logbroker_storage.message_ids import IdentifiedRecord, identified
from logbroker_storage.record_batch import BatchFields, NewRecord, encode_batch, encode_values
from logbroker_storage.record_encoding import values_bytes
from logbroker_storage.view.message_ids import FirstRecord

from .records import StoredHeaders

if TYPE_CHECKING:
    from .partition_queue import PartitionQueue

NO_OFFSET = -1
NO_SEQUENCE = -1
LAST_INDEX = (1 << 31) - 1

LOOK_S = 0.0005
MOST_GRANTED = 1024
MOST_SLACK = 16

# An upper bound of what the format adds to a value: length and value length (varints, 4 bytes up to
# 128 MiB), attributes, timestamp and offset deltas (3 each), null key, header count.
VALUE_OVERHEAD_BYTES = 18
# The same with any timestamps (10), and the key's length; headers add HEADER_OVERHEAD_BYTES each.
RECORD_OVERHEAD_BYTES = 32
HEADER_OVERHEAD_BYTES = 10
UTF8_BYTES = 4  # at most, of one character


class BatchState(enum.Enum):
    """How far a batch has come; see the table above."""

    OPEN = "open"
    CLOSED = "closed"
    WRITTEN = "written"
    SETTLED = "settled"
    FAILED = "failed"


# The members by names of their own: looking them up in the class takes 0.05 µs each time.
OPEN, CLOSED, WRITTEN, SETTLED, FAILED = BatchState


class Batch:
    """Records of one partition that are appended together."""

    __slots__ = (
        "accounted",
        "base_offset",
        "count",
        "elsewhere",
        "end_offset",
        "error",
        "forgotten",
        "granted_bytes",
        "granted_until",
        "is_over",
        "last_sequence",
        "left_out",
        "limit_bytes",
        "looked_count",
        "message_ids",
        "observed",
        "opened_s",
        "queue",
        "records",
        "runs",
        "size_bytes",
        "slack",
        "spare",
        "state",
        "timestamp_ms",
        "until",
        "values",
    )

    def __init__(self, queue: PartitionQueue, *, limit_bytes: int, opened_s: float) -> None:
        """*opened_s* is monotonic time; *limit_bytes* counts records with their overhead."""
        self.queue = queue
        self.limit_bytes = limit_bytes
        self.opened_s = opened_s
        self.granted_until = 0  # lock-free senders may add records of indices below this
        self.granted_bytes = 0  # and of values (with their keys and headers) up to this size
        self.slack = 1  # granted_bytes is this many quarters above the average
        self.timestamp_ms = 0  # which is to be theirs
        self.until = 0.0  # wall-clock seconds at which the last run of timestamps ends
        self.count = 0
        self.looked_count = 0  # so many there were when the clock was last looked at
        self.accounted = 0  # so many records are subtracted from spare
        self.values: list[bytes | None] = []
        self.runs: list[tuple[int, int]] = []
        self.records: list[NewRecord] | None = None  # instead of values, once a record has more than a value
        self.spare = limit_bytes  # bytes left, behind the records that are accounted
        self.state = OPEN
        self.is_over = False  # SETTLED or FAILED; may be read without the lock
        self.size_bytes = 0  # what it counts for in the producer's buffer, once closed
        self.last_sequence = NO_SEQUENCE  # named producers: of the last record
        self.base_offset = NO_OFFSET
        self.end_offset = NO_OFFSET
        self.error: LogbrokerError | None = None
        self.observed: set[int] | None = None  # of a failed batch: indices whose receipts were asked
        self.forgotten: set[int] | None = None  # indices of records nobody will ask about
        # Of a batch with message ids: each one's first index, and the records that others turned out to be the
        # first of; both None without.
        self.message_ids: dict[bytes, int] | None = None
        self.elsewhere: dict[int, FirstRecord | LogbrokerError] | None = None
        self.left_out: list[int] = []  # the indices in elsewhere, ascending

    # Taking records, under the producer's lock ------------------------------------------------------

    def freeze(self) -> None:
        """Keep lock-free senders out until the next ``grant``; ``spare`` and ``count`` are then true."""
        self.granted_until = 0
        count = self.count
        unaccounted = count - self.accounted
        if not unaccounted:
            return
        if self.records is not None:
            new_bytes = _whole_bytes(self.records[-unaccounted:])
        else:
            new_bytes = values_bytes(self.values[-unaccounted:]) + unaccounted * VALUE_OVERHEAD_BYTES
        # No call from here on: as in add.
        self.spare -= new_bytes
        self.accounted = count

    @property
    def overhead_bytes(self) -> int:
        """What a record counts for beside its contents."""
        return VALUE_OVERHEAD_BYTES if self.records is None else RECORD_OVERHEAD_BYTES

    def grant(self, pace_s: float) -> None:
        """Let lock-free senders in again; records arrive every *pace_s*."""
        if pace_s < LOOK_S:
            overhead_bytes = self.overhead_bytes
            average_bytes = max(1, (self.limit_bytes - self.spare) // self.count - overhead_bytes)
            self.granted_bytes = average_bytes + average_bytes * self.slack // 4
            self.timestamp_ms = self.runs[-1][1]
            most = self.spare // (self.granted_bytes + overhead_bytes)
            self.granted_until = self.count + min(most, MOST_GRANTED, int(LOOK_S / pace_s))

    def widen(self, size_bytes: int) -> None:
        """Grant more bytes a record from now on, if it was *size_bytes* that the last grant refused."""
        if size_bytes > self.granted_bytes and self.slack < MOST_SLACK:
            self.slack *= 2

    def stamp(self, timestamp_ms: int) -> None:
        """Records from here on have this timestamp, until the next stamp."""
        if not self.runs or self.runs[-1][1] != timestamp_ms:
            self.runs.append((self.count, timestamp_ms))
        self.until = 0.0

    def stamp_now(self, now_s: float) -> None:
        """Records from here on have the time *now_s*, until the millisecond ends."""
        if now_s >= self.until:
            now_ms = int(now_s * 1000)
            self.stamp(now_ms)
            self.until = (now_ms + 1) / 1000

    def add(self, value: bytes | None, key: bytes | None, headers: StoredHeaders, size_bytes: int) -> int:
        """Add a record under the current timestamp; its index."""
        if self.records is None and (key is not None or headers):
            self._become_general()
        record = None if self.records is None else NewRecord(value, key, headers, self.runs[-1][1])
        # No call from here to append: a Ctrl-C must not come between the count and the record either.
        index = self.count
        self.spare -= size_bytes
        self.accounted += 1
        self.count = index + 1
        if record is None:
            self.values.append(value)
        elif self.records is not None:
            self.records.append(record)
        return index

    def add_values(self, values: Sequence[bytes], size_bytes: int) -> None:
        """Add plain values under the current timestamp; *size_bytes* is what they take, at most."""
        records: list[NewRecord] = []
        if self.records is not None:
            timestamp_ms = self.runs[-1][1]
            records = [NewRecord(value, timestamp_ms=timestamp_ms) for value in values]
        count = self.count + len(values)
        # No call from here on: as in add.
        self.spare -= size_bytes
        self.accounted = count
        self.count = count
        if self.records is None:
            self.values += values
        else:
            self.records += records

    def index_of_id(self, message_id: bytes) -> int | None:
        """The record that has this id in the batch."""
        return None if self.message_ids is None else self.message_ids.get(message_id)

    def take_id(self, message_id: bytes, index: int) -> None:
        """The record at *index*, the first of this id in the batch, is only to be appended if nobody has the id."""
        if self.message_ids is None:
            self.message_ids = {}
        self.message_ids[message_id] = index

    def forget(self, index: int) -> None:
        """Nobody will ask what became of the record at *index*."""
        if self.forgotten is None:
            self.forgotten = set()
        self.forgotten.add(index)

    def _become_general(self) -> None:
        values = self.values
        runs = [run for run in self.runs if run[0] < len(values)]  # the last may have no record yet
        ends = [first for first, _ in runs[1:]] + [len(values)] * bool(runs)
        self.records = [
            NewRecord(value, timestamp_ms=timestamp_ms)
            for (first, timestamp_ms), end in zip(runs, ends, strict=True)
            for value in values[first:end]
        ]
        self.values = []

    def close(self) -> None:
        """No more records; ``size_bytes`` is what it holds."""
        self.freeze()
        self.size_bytes = self.limit_bytes - self.spare
        self.state = CLOSED

    def end(self, state: BatchState) -> None:
        """It is SETTLED, or FAILED."""
        self.state = state
        self.is_over = True

    # Going out, in the thread that holds the queue's sending lock --------------------------------------

    def encode(self, **fields: Unpack[BatchFields]) -> bytearray:
        """The batch's bytes, as the log takes them."""
        records = self.records
        if len(self.values if records is None else records) != self.count:
            raise AssertionError("two senders added to a batch at once without a lock; please report this")
        if records is None:
            return encode_values(self.values, self.runs, **fields)
        return encode_batch(self._kept() if self.elsewhere else records, **fields)

    def _kept(self) -> list[NewRecord]:
        assert self.records is not None
        left_out = self.elsewhere or {}
        return [record for index, record in enumerate(self.records) if index not in left_out]

    @property
    def kept_count(self) -> int:
        """How many records go into the log."""
        return self.count - len(self.left_out)

    def identified(self) -> list[IdentifiedRecord]:
        """Those of these that have a message id, by their offsets in the batch."""
        return identified(
            (offset, record.headers, record.timestamp_ms) for offset, record in enumerate(self._kept())
        )

    def leave_out(self, taken: Mapping[bytes, FirstRecord | LogbrokerError]) -> None:
        """Keep the records with these ids out of the log; their receipts tell why."""
        assert self.message_ids is not None
        if self.elsewhere is None:
            self.elsewhere = {}
        for message_id, first in taken.items():
            self.elsewhere[self.message_ids[message_id]] = first
        self.left_out = sorted(self.elsewhere)

    def take_append_time(self, timestamp_ms: int) -> None:
        """The log gave every record its own time (``message.timestamp.type=LogAppendTime``)."""
        self.runs = [(0, timestamp_ms)]

    def release_records(self) -> None:
        """Forget the payload; receipts keep the rest alive."""
        self.values = []
        self.records = None

    # What receipts ask ----------------------------------------------------------------------------------

    def offset_of(self, index: int) -> int:
        """Where the record at *index*, which was not left out, is."""
        return self.base_offset + index - (bisect_left(self.left_out, index) if self.left_out else 0)

    def failure_of(self, index: int) -> LogbrokerError | None:
        """Why the record at *index* failed; None when it did not."""
        if self.error is not None or self.elsewhere is None:
            return self.error
        found = self.elsewhere.get(index)
        return found if isinstance(found, LogbrokerError) else None

    def timestamp_ms_of(self, index: int) -> int:
        return self.runs[bisect_right(self.runs, (index, LAST_INDEX << 32)) - 1][1]

    def observe(self, index: int) -> None:
        """Somebody has been told that the record at *index* failed."""
        if self.observed is not None:
            self.observed.add(index)

    def await_observers(self) -> None:
        """Records have failed, and nobody has been told yet, nor will be of those that are forgotten."""
        self.observed = set(self.forgotten or ())

    @property
    def is_observed(self) -> bool:
        """Whether of every record that failed somebody has been told."""
        return self.unobserved_failure is None

    @property
    def unobserved_failure(self) -> LogbrokerError | None:
        """The first failure that nobody has been told."""
        observed = self.observed
        if observed is None:
            return None
        if self.error is not None:
            return self.error if len(observed) < self.count else None
        failures = (self.failure_of(index) for index in self.left_out if index not in observed)
        return next((failure for failure in failures if failure is not None), None)


def headers_bytes(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """An upper bound of what headers take in a batch."""
    return sum(
        [HEADER_OVERHEAD_BYTES + UTF8_BYTES * len(name) + len(content or b"") for name, content in headers]
    )


def _whole_bytes(records: Sequence[NewRecord]) -> int:
    """An upper bound of what whole records, which lock-free senders added, take in a batch."""
    sizes = [len(record.value or b"") + len(record.key or b"") for record in records]
    headers = [headers_bytes(record.headers) for record in records if record.headers]
    return sum(sizes) + sum(headers) + len(sizes) * RECORD_OVERHEAD_BYTES
