"""A data directory with something of every kind in it, and what must be read from it: the oracle of the damage.

topic t, one partition      batches of every codec and size, of plain, idempotent and transactional producers
  first segment, 64 KiB       (committed and aborted), markers, an emptied batch
  second segment, small       the end of a transaction that began in the first
topic u, two partitions     a few records
journal                     topics, offsets of a group, producer ids, transactions
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import CorruptionError
from logbroker_storage.events import OffsetEvent
from logbroker_storage.log_config import LogConfig
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import (
    BatchHeader,
    Compression,
    ControlType,
    NewRecord,
    Record,
    decode_records,
    encode_batch,
    encode_empty_batch,
    encode_values,
    read_batch,
)
from logbroker_storage.segment import TimestampOffset
from logbroker_storage.testing import LogBuilder

NOW_MS = 1_700_000_000_000
TOPIC, OTHER = "t", "u"
SEGMENT_BYTES = 64 << 10
PLAIN, COMMITTED, ABORTED, LATE = 11, 12, 13, 14  # producer ids
GROUP = "g"


@dataclass(frozen=True)
class Batch:
    """A batch of topic ``t``, where it lies and what it holds."""

    segment: Path
    position: int
    header: BatchHeader
    records: tuple[Record, ...]

    @property
    def end_position(self) -> int:
        return self.position + self.header.size_bytes

    @property
    def offsets(self) -> range:
        return range(self.header.base_offset, self.header.next_offset)


class Store:
    """The directory at *path*, closed cleanly; ``restore`` makes it what it was."""

    def __init__(self, path: Path, rng: random.Random, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """*path* is a directory of its own; *segment_bytes* what the first segment takes."""
        self.path = path
        self.data = path / "data"
        _write(self.data, rng, segment_bytes)
        self.sound_files = {str(file.relative_to(self.data)): file.read_bytes() for file in _files(self.data)}

    def restore(self, *, without_view: bool = False) -> None:
        """Every file as it was, and no other."""
        for file in _files(self.data):
            if str(file.relative_to(self.data)) not in self.sound_files:
                file.unlink()
        for name, content in self.sound_files.items():
            file = self.data / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if without_view:
            shutil.rmtree(self.data / "view")

    @cached_property
    def segments(self) -> list[Path]:
        return sorted((self.data / "logs" / f"{TOPIC}-0").glob("*.log"))

    @cached_property
    def batches(self) -> list[Batch]:
        return [batch for segment in self.segments for batch in batches_of(segment)]

    @cached_property
    def small_files(self) -> list[str]:
        """Every file of logs/ that is no segment and not empty, by its name below the directory."""
        return [
            name
            for name, content in self.sound_files.items()
            if name.startswith("logs/") and not name.endswith(".log") and content
        ]


def batches_of(segment: Path) -> Iterator[Batch]:
    content = segment.read_bytes()
    position = 0
    while position < len(content):
        batch = read_batch(content, position)
        yield Batch(segment, position, batch.header, tuple(decode_records(batch)))
        position += batch.header.size_bytes


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# Writing --------------------------------------------------------------------------------------------------


class _Writer:
    def __init__(self, log: PartitionLog, rng: random.Random) -> None:
        self.log = log
        self.now_ms = NOW_MS
        self._rng = rng
        self._sequences: dict[int, int] = {}
        self._epochs: dict[int, int] = {}

    def values(self, count: int, size: int) -> list[bytes]:
        """Half of it does not compress."""
        return [self._rng.randbytes(size // 2) + b"x" * (size - size // 2) for _ in range(count)]

    def put(
        self, values: list[bytes], *, codec: Compression = Compression.NONE, producer_id: int = -1
    ) -> None:
        records = [
            NewRecord(
                value, b"k%d" % n if n % 2 else None, (("h", b"x"),) if n % 3 == 2 else (), self.now_ms + n
            )
            for n, value in enumerate(values)
        ]
        fields = {}
        if producer_id >= 0:
            sequence, epoch = self._sequences.get(producer_id, 0), self._epochs.get(producer_id, 0)
            fields = {"producer_id": producer_id, "producer_epoch": epoch, "base_sequence": sequence}
            self._sequences[producer_id] = sequence + len(values)
        batch = encode_batch(records, compression=codec, transactional=producer_id > PLAIN, **fields)  # type: ignore[arg-type]
        self.log.append(batch)
        self.now_ms += 7 + len(values)

    def end(self, how: ControlType, producer_id: int) -> None:
        """The transaction's marker carries the next epoch, in which sequences begin anew."""
        epoch = self._epochs[producer_id] = self._epochs.get(producer_id, 0) + 1
        self._sequences[producer_id] = 0
        self.log.append_marker(how, producer_id=producer_id, marker_epoch=epoch)
        self.now_ms += 1


def _write(data: Path, rng: random.Random, segment_bytes: int) -> None:
    """Everything of the module's table."""
    directory = DataDirectory.open(str(data))
    # It rolls when the second segment is due, and not before.
    interval = segment_bytes // 16  # small segments have a few entries in each index, too
    directory.create_topic(
        TOPIC, 1, LogConfig.parse({"segment.bytes": 16 << 20, "index.interval.bytes": interval})
    )
    directory.create_topic(OTHER, 2, LogConfig.parse({}))
    writer = _Writer(directory.log(TOPIC, 0), rng)
    writer.put(writer.values(3, 20))
    directory.close()
    builder = LogBuilder(str(data / "logs" / f"{TOPIC}-0"))
    builder.append(encode_empty_batch(base_offset=0, last_offset=4, timestamp_ms=NOW_MS))
    shutil.rmtree(data / "view")  # what the builder wrote is not in it
    directory = DataDirectory.open(str(data))
    log = writer.log = directory.log(TOPIC, 0)
    _fill_segment(writer, rng, segment_bytes)
    log.roll_now()
    writer.put(writer.values(4, 30), producer_id=PLAIN)
    writer.end(ControlType.ABORT, LATE)
    writer.put(writer.values(2, 50), codec=Compression.LZ4)
    for number in range(2):
        directory.log(OTHER, number).append(encode_values([b"%d" % number, b"end"], [(0, NOW_MS)]))
    for name in (TOPIC, OTHER):
        directory.journal.record([OffsetEvent(GROUP, name, 0, 2, "", NOW_MS)])
    directory.producer_ids.allocate()
    log.sync()
    directory.close()


def _fill_segment(writer: _Writer, rng: random.Random, segment_bytes: int) -> None:
    """Small and large batches of every codec and every kind of producer."""
    codecs = list(Compression)
    number = 0
    while True:
        left = segment_bytes - writer.log.state().end.active_bytes
        if left < min(6000, segment_bytes // 2):
            break
        codec = codecs[number % len(codecs)]
        producer_id = (-1, PLAIN, COMMITTED, ABORTED)[rng.randrange(4)]
        if number % 9 == 4:
            writer.put(writer.values(30, 120), codec=codec, producer_id=producer_id)
        else:
            values = writer.values(1 + rng.randrange(5), 10 + rng.randrange(150))
            writer.put(values, codec=codec, producer_id=producer_id)
        number += 1
        if number % 7 == 0:
            writer.end(ControlType.COMMIT, COMMITTED)
            writer.end(ControlType.ABORT, ABORTED)
    writer.put(writer.values(2, 40), producer_id=LATE)
    writer.put(writer.values(1, 40), producer_id=ABORTED)
    writer.end(ControlType.ABORT, ABORTED)
    writer.end(ControlType.COMMIT, COMMITTED)
    left = segment_bytes - writer.log.state().end.active_bytes
    writer.log.append(_of_size(left, rng))


def _of_size(size_bytes: int, rng: random.Random) -> bytearray:
    """A batch that takes exactly so many bytes."""
    for value_bytes in range(size_bytes, 0, -1):
        batch = encode_values([rng.randbytes(value_bytes)], [(0, NOW_MS)])
        if len(batch) == size_bytes:
            return batch
    raise AssertionError(f"no batch has {size_bytes} bytes")


# Reading --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """What a reader got of one partition: records, and the ranges that errors named."""

    records: tuple[Record, ...]
    damaged: tuple[tuple[int, int], ...]


def read_all(
    log: PartitionLog, isolation: Isolation = Isolation.READ_UNCOMMITTED, start: int | None = None
) -> Read:
    """Every record, as a consumer reads that goes on behind damage."""
    found: list[Record] = []
    damaged: list[tuple[int, int]] = []
    reader = log.reader(log.offsets().log_start_offset if start is None else start, isolation)
    try:
        while True:
            try:
                batches = reader.read()
            except CorruptionError as error:
                if error.end_offset <= error.start_offset:
                    raise AssertionError(f"an error that leads nowhere: {error}") from error
                damaged.append((error.start_offset, error.end_offset))
                reader.seek(error.end_offset)
                continue
            if not batches:
                return Read(tuple(found), tuple(damaged))
            for batch in batches:
                if not batch.header.is_control:
                    found += decode_records(batch)
    finally:
        reader.close()


@dataclass(frozen=True)
class Answers:
    """Everything that is asked of an open directory, from each kind of file: equal before damage and after."""

    records: dict[tuple[str, int], Read]
    committed: Read
    ends: dict[tuple[str, int], tuple[int, int, int, int]]
    sequences: dict[int, int | None]
    group: tuple[OffsetEvent, ...]
    by_offset: dict[int, int]
    by_time: dict[int, TimestampOffset | None]


def ask(directory: DataDirectory, offsets: list[int], times_ms: list[int]) -> Answers:
    """What *directory* answers; *offsets* and *times_ms* are looked up in topic ``t``."""
    log = directory.log(TOPIC, 0)
    logs = {
        (name, number): directory.log(name, number) for name, number in ((TOPIC, 0), (OTHER, 0), (OTHER, 1))
    }
    return Answers(
        records={key: read_all(other) for key, other in logs.items()},
        committed=read_all(log, Isolation.READ_COMMITTED),
        ends={key: other.offsets()[:4] for key, other in logs.items()},
        sequences={
            producer_id: log.last_sequence(producer_id) for producer_id in (PLAIN, COMMITTED, ABORTED, LATE)
        },
        group=tuple(directory.groups.committed_offsets(GROUP)),
        by_offset={offset: _base_offset_at(log, offset) for offset in offsets},
        by_time={time_ms: log.record_at_time(time_ms) for time_ms in times_ms},
    )


def _base_offset_at(log: PartitionLog, offset: int) -> int:
    reader = log.reader(offset)
    try:
        return reader.read(1)[0].header.base_offset
    finally:
        reader.close()
