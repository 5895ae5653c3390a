"""A tiny language for making logs, sound and damaged, in a few words.

    log = LogBuilder(directory).batch(b"a", b"b").batch(b"c").torn(drop_bytes=3)
    assert log.values() == [b"a", b"b"]

Batches go straight into segment files, as the codec encodes them: no lock, no view, no sync. Damage is
done to the newest segment. Every method that changes the log returns the builder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from ..errors import CorruptBatchError
from ..files import Files, OsFiles
from ..record_batch import (
    HEADER_BYTES,
    BatchFields,
    BatchHeader,
    ControlType,
    NewRecord,
    Record,
    assign,
    decode_records,
    encode_batch,
    encode_control_batch,
    encode_empty_batch,
    encode_values,
    read_batch,
    read_header,
)
from ..segment import ScanStop, rebuild_indexes, scan
from ..segment_files import LOG_SUFFIX, list_segments, segment_name
from .manual_clock import START_MS


def without_room(content: bytes) -> bytes:
    """A log file's *content* up to the zeros that were written in advance."""
    position = 0
    while len(content) - position >= HEADER_BYTES:
        try:
            position += read_header(content, position).size_bytes
        except CorruptBatchError:
            break
    return content if content[position:].strip(b"\0") else content[:position]


class LogBuilder:
    """Writes a partition folder; offsets and timestamps (one millisecond a record) count up by themselves."""

    def __init__(self, directory: str, *, files: Files | None = None, base_offset: int = 0) -> None:
        """*directory* is created when it is missing; a log that is there already is continued, its room cut off."""
        self.directory = directory
        self.files = files if files is not None else OsFiles()
        self.next_offset = self.base_offset = base_offset
        self.next_timestamp_ms = START_MS
        self.positions: list[int] = []  # where each batch of the newest segment begins
        if not self.files.exists(directory):
            self.files.mkdir(directory)
        for base in list_segments(self.files, directory):
            self._continue(base)
        self._ensure_file()

    # Building -----------------------------------------------------------------------------------------

    def batch(
        self, *values: bytes | None, timestamp_ms: int | None = None, **fields: Unpack[BatchFields]
    ) -> LogBuilder:
        """One batch of values with null keys."""
        start_ms = self.next_timestamp_ms if timestamp_ms is None else timestamp_ms
        runs = [(index, start_ms + index) for index in range(len(values))]
        return self.append(encode_values(values, runs, **fields))

    def records(self, *records: NewRecord, **fields: Unpack[BatchFields]) -> LogBuilder:
        """One batch of whole records, with keys, headers and timestamps as given."""
        return self.append(encode_batch(records, **fields))

    def keyed(self, *pairs: tuple[bytes | None, bytes | None], **fields: Unpack[BatchFields]) -> LogBuilder:
        """One batch of (key, value) pairs."""
        start_ms = self.next_timestamp_ms
        return self.records(
            *[NewRecord(value, key, (), start_ms + index) for index, (key, value) in enumerate(pairs)],
            **fields,
        )

    def control(self, kind: ControlType, *, producer_id: int, producer_epoch: int = 0) -> LogBuilder:
        """A transaction marker."""
        marker = encode_control_batch(
            kind, producer_id=producer_id, producer_epoch=producer_epoch, timestamp_ms=self.next_timestamp_ms
        )
        return self.append(marker)

    def empty(self, offsets: int, **fields: Unpack[BatchFields]) -> LogBuilder:
        """A batch without records that stands for the next *offsets* offsets."""
        return self.append(encode_empty_batch(last_offset=offsets - 1, **fields))

    def append(self, batch: bytes | bytearray) -> LogBuilder:
        """An encoded batch, given the next offset."""
        placed = bytearray(batch)
        assign(placed, self.next_offset, 0)
        header = read_header(placed)
        self.positions.append(self.size_bytes())
        self.raw(placed)
        self.next_offset = header.next_offset
        self.next_timestamp_ms = max(self.next_timestamp_ms, header.max_timestamp_ms + 1)
        return self

    def roll(self) -> LogBuilder:
        """Go on in a new segment."""
        self.base_offset = self.next_offset
        self.positions = []
        self._ensure_file()
        return self

    def indexes(self, index_interval_bytes: int = 4096) -> LogBuilder:
        """Write the indexes of every segment."""
        for base in list_segments(self.files, self.directory):
            size = len(self.files.read_file(self._log_path(base)))
            rebuild_indexes(self.files, self.directory, base, size, index_interval_bytes)
        return self

    # Damaging -----------------------------------------------------------------------------------------

    def raw(self, data: bytes | bytearray) -> LogBuilder:
        """Bytes behind what is there, whatever they are."""
        return self.overwrite(self.size_bytes(), data)

    def zeros(self, size_bytes: int) -> LogBuilder:
        """Zeros behind what is there, as a power cut leaves them in a file that was only extended."""
        return self.raw(bytes(size_bytes))

    def torn(self, *, drop_bytes: int) -> LogBuilder:
        """The last bytes of the newest segment are missing."""
        fd = self.files.open(self.log_path)
        try:
            self.files.truncate(fd, self.files.size(fd) - drop_bytes)
        finally:
            self.files.close(fd)
        return self

    def flip(self, *, batch: int = -1, byte: int = 61, bit: int = 0) -> LogBuilder:
        """Turn over one bit of byte *byte* (header included) of a batch of the newest segment."""
        position = self.positions[batch] + byte
        old = self.content()[position]
        return self.overwrite(position, bytes([old ^ (1 << bit)]))

    def overwrite(self, position: int, data: bytes | bytearray) -> LogBuilder:
        """Put *data* at *position* of the newest segment."""
        fd = self.files.open(self.log_path)
        try:
            self.files.pwrite(fd, data, position)
        finally:
            self.files.close(fd)
        return self

    # Looking ------------------------------------------------------------------------------------------

    @property
    def log_path(self) -> str:
        """The log file of the newest segment."""
        return self._log_path(self.base_offset)

    def content(self) -> bytes:
        """The newest segment's log file."""
        return self.files.read_file(self.log_path)

    def size_bytes(self) -> int:
        fd = self.files.open(self.log_path, readonly=True)
        try:
            return self.files.size(fd)
        finally:
            self.files.close(fd)

    def scan(self, base_offset: int | None = None) -> tuple[list[tuple[int, BatchHeader]], ScanStop]:
        """The sound batches of a segment (the newest) from its start, and why they end."""
        base = self.base_offset if base_offset is None else base_offset
        fd = self.files.open(self._log_path(base), readonly=True)
        batches: list[tuple[int, BatchHeader]] = []
        try:
            for item in scan(
                self.files, fd, start_position=0, end_position=self.files.size(fd), expected_offset=base
            ):
                if isinstance(item, ScanStop):
                    return batches, item
                batches.append(item)
        finally:
            self.files.close(fd)
        raise AssertionError("a scan ends with a ScanStop")

    def stored_records(self) -> list[Record]:
        """The records of all segments, each up to its first damage; transaction markers left out."""
        found: list[Record] = []
        for base in list_segments(self.files, self.directory):
            content = self.files.read_file(self._log_path(base))
            for position, header in self.scan(base)[0]:
                if not header.is_control:
                    found += decode_records(read_batch(content, position))
        return found

    def values(self) -> list[bytes | None]:
        """The values of ``stored_records``."""
        return [record.value for record in self.stored_records()]

    # Files --------------------------------------------------------------------------------------------

    def _log_path(self, base_offset: int) -> str:
        return f"{self.directory}/{segment_name(base_offset)}{LOG_SUFFIX}"

    def _ensure_file(self) -> None:
        self.files.close(self.files.open(self.log_path, create=True))

    def _continue(self, base_offset: int) -> None:
        batches, stop = self.scan(base_offset)
        self.base_offset, self.next_offset = base_offset, stop.offset
        content = self.content()
        self.torn(drop_bytes=len(content) - len(without_room(content)))
        self.positions = [position for position, _ in batches]
        newest_ms: Sequence[int] = [header.max_timestamp_ms + 1 for _, header in batches]
        self.next_timestamp_ms = max([self.next_timestamp_ms, *newest_ms])
