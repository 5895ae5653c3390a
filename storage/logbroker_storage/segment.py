"""Reading one segment: walk its batches, find an offset or a timestamp, build its indexes again.

A segment is batches one behind the other, each saying its own length, so a walk hops from header to
header. What a walk can trust, in the order in which it is checked:

    check          finds                                              defect
    read_header    a header that cannot be one                        ZEROS, BAD_MAGIC, BAD_LENGTH, BAD_HEADER
    end            a batch that ends behind the end given             TRUNCATED
    base_offset    one that does not follow the batch before          BAD_OFFSET
    leader_epoch   one that is not the partition's                    BAD_EPOCH
    CRC            damage anywhere from the attributes on             BAD_CRC

The CRC covers neither base offset, length nor epoch; a flipped bit there is seen because batches tile the
offset space without gaps and an epoch is always 0. Damage is a value (``ScanStop``), never an exception.

Every function takes the position where the segment ends: what lies behind is another process's append
in progress.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from . import offset_index, time_index
from .crc32c import crc32c
from .errors import BatchDefect, CorruptBatchError
from .files import Files
from .record_batch import (
    CRC_START,
    HEADER_BYTES,
    BatchHeader,
    check_crc,
    decode_records,
    read_batch,
    read_header,
)
from .segment_files import LOG_SUFFIX, OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX, segment_name

SCAN_BLOCK_BYTES = 1 << 20
# Without the CRC only headers are wanted: small enough to skip most of a large batch, yet holding many small.
HEADER_BLOCK_BYTES = 16 << 10
# Offsets of one segment lie within an int32 of its base, because index entries have no room for more.
MAX_RELATIVE_OFFSET = (1 << 31) - 1
_EPOCH_AND_MAGIC = b"\0\0\0\0\x02"
_EPOCH_START = 12


class ScanStop(NamedTuple):
    """Where a scan ended, which offset was due there, and why: None for the end that was asked for."""

    position: int
    offset: int
    defect: BatchDefect | None


class SoundBatch(NamedTuple):
    """Where the log can be read again behind damage."""

    position: int
    base_offset: int


class Located(NamedTuple):
    """Where a batch begins, and the base offset that it must have there."""

    position: int
    base_offset: int


class TimestampOffset(NamedTuple):
    """A record's offset and its own timestamp."""

    offset: int
    timestamp_ms: int


class IndexBytes(NamedTuple):
    """The contents of a segment's two index files."""

    offset_index: bytes
    time_index: bytes


def scan(
    files: Files,
    fd: int,
    *,
    start_position: int,
    end_position: int,
    expected_offset: int | None,
    check_crc: bool = True,
    leader_epoch: int | None = 0,
) -> Iterator[tuple[int, BatchHeader] | ScanStop]:
    """The position and header of each sound batch in [start_position, end_position), then one ScanStop.

    Args:
        expected_offset: the base offset of the first batch; each further one must follow the last. None
            leaves base offsets unchecked (a log compacted by Kafka has gaps).
        check_crc: also read and sum the bytes; without it only headers are looked at.
        leader_epoch: what every batch must carry; None leaves it unchecked (a log of a Kafka cluster).

    """
    block_bytes = SCAN_BLOCK_BYTES if check_crc else HEADER_BLOCK_BYTES
    check_offset = expected_offset is not None
    offset = expected_offset or 0
    position = block_start = start_position
    block = memoryview(b"")
    while position < end_position:
        at = position - block_start
        if at + HEADER_BYTES > len(block):
            block = memoryview(files.pread(fd, min(block_bytes, end_position - position), position))
            block_start, at = position, 0
        try:
            header = read_header(block, at)
        except CorruptBatchError as error:
            yield ScanStop(position, offset, error.defect)
            return
        next_position = position + header.size_bytes
        if next_position > end_position:
            yield ScanStop(position, offset, BatchDefect.TRUNCATED)
            return
        if check_offset and header.base_offset != offset:
            yield ScanStop(position, offset, BatchDefect.BAD_OFFSET)
            return
        if leader_epoch is not None and header.partition_leader_epoch != leader_epoch:
            yield ScanStop(position, offset, BatchDefect.BAD_EPOCH)
            return
        if check_crc:
            if next_position - block_start > len(block) and header.size_bytes <= block_bytes:
                block = memoryview(files.pread(fd, min(block_bytes, end_position - position), position))
                block_start, at = position, 0
            if not _crc_matches(files, fd, position, header, block, at):
                is_short = not files.pread(fd, 1, next_position - 1)  # the file ends before end_position
                yield ScanStop(position, offset, BatchDefect.TRUNCATED if is_short else BatchDefect.BAD_CRC)
                return
        yield position, header
        position = next_position
        offset = header.next_offset
    yield ScanStop(position, offset, None)


def _crc_matches(
    files: Files, fd: int, position: int, header: BatchHeader, block: memoryview, at: int
) -> bool:
    """Check a batch in *block*, or block by block from the file when it is larger than one."""
    if at + header.size_bytes <= len(block):
        return check_crc(block, at, header)
    end_position = position + header.size_bytes
    position += CRC_START
    crc = 0
    while position < end_position:
        piece = files.pread(fd, min(SCAN_BLOCK_BYTES, end_position - position), position)
        if not piece:
            return False
        crc = crc32c(piece, crc)
        position += len(piece)
    return crc == header.crc


# Behind damage ------------------------------------------------------------------------------------------


def next_sound_batch(
    files: Files, fd: int, damaged_position: int, *, end_position: int, min_offset: int
) -> SoundBatch | None:
    """The first sound batch behind the damaged one at *damaged_position*; None when there is none.

    Its base offset is at least *min_offset*. Where the damaged batch's own length leads to the batch that its
    offsets lead to, that is it: a search byte by byte could take a batch that a user stored as a record's
    value for one of the log's.
    """
    following = _claimed_following(files, fd, damaged_position, end_position, min_offset)
    if following is not None:
        return following
    position = damaged_position + 1
    while position + HEADER_BYTES <= end_position:
        block = files.pread(fd, min(SCAN_BLOCK_BYTES, end_position - position), position)
        if len(block) < HEADER_BYTES:
            return None
        for candidate in _header_candidates(block):
            if _is_sound(files, fd, position + candidate, end_position, min_offset):
                return SoundBatch(position + candidate, read_header(block, candidate).base_offset)
        position += len(block) - HEADER_BYTES + 1  # a header may lie across the end of the block
    return None


def _claimed_following(
    files: Files, fd: int, position: int, end_position: int, min_offset: int
) -> SoundBatch | None:
    """The batch behind the one at *position*, if that one's length and offsets agree on it."""
    try:
        claimed = read_header(files.pread(fd, HEADER_BYTES, position))
    except CorruptBatchError:
        return None
    following = position + claimed.size_bytes
    if not _is_sound(files, fd, following, end_position, min_offset):
        return None
    base_offset = read_header(files.pread(fd, HEADER_BYTES, following)).base_offset
    return SoundBatch(following, base_offset) if base_offset == claimed.next_offset else None


def _header_candidates(block: bytes) -> Iterator[int]:
    """Where in *block* a whole header of our own could start, by its epoch 0 and magic 2."""
    found = block.find(_EPOCH_AND_MAGIC, _EPOCH_START)
    while 0 <= found <= len(block) - HEADER_BYTES + _EPOCH_START:
        yield found - _EPOCH_START
        found = block.find(_EPOCH_AND_MAGIC, found + 1)


def _is_sound(files: Files, fd: int, position: int, end_position: int, min_offset: int) -> bool:
    """Whether a batch of this segment with a valid CRC starts at *position*."""
    data = files.pread(fd, HEADER_BYTES, position)
    try:
        header = read_header(data)
    except CorruptBatchError:
        return False
    return (
        min_offset <= header.base_offset <= min_offset + MAX_RELATIVE_OFFSET
        and header.partition_leader_epoch == 0
        and position + header.size_bytes <= end_position
        and _crc_matches(files, fd, position, header, memoryview(data), 0)
    )


def sound_headers(
    files: Files, fd: int, *, start_position: int, end_position: int, expected_offset: int
) -> Iterator[tuple[int, BatchHeader]]:
    """The position and header of every batch, going on behind damage.

    A header is believed when the batch that follows begins where it says, by position and by offset.
    Where none does, the CRC decides which of the two is damaged.
    """
    while start_position < end_position:
        held: tuple[int, BatchHeader] | None = None
        stop = ScanStop(start_position, expected_offset, None)
        for item in scan(
            files,
            fd,
            start_position=start_position,
            end_position=end_position,
            expected_offset=expected_offset,
            check_crc=False,
        ):
            if isinstance(item, ScanStop):
                stop = item
                break
            if held is not None:
                yield held
            held = item
        damaged_position, due_offset = stop.position, stop.offset
        if held is not None:
            position, header = held
            if _crc_matches(files, fd, position, header, memoryview(b""), 0):
                yield held
                if stop.defect is None:
                    return
            else:
                damaged_position, due_offset = position, header.base_offset
        sound = next_sound_batch(
            files, fd, damaged_position, end_position=end_position, min_offset=due_offset
        )
        if sound is None:
            return
        start_position, expected_offset = sound


# Finding ------------------------------------------------------------------------------------------------


def locate(
    files: Files,
    fd: int,
    index: bytes,
    base_offset: int,
    offset: int,
    end_position: int,
) -> Located:
    """Where the batch that holds *offset* is, else the first one behind it, else *end_position*.

    *index* is the content of the segment's offset index; a wrong or missing one costs time, never the
    answer. Where *offset* lies in a damaged stretch, the place of the damage.
    """
    behind = Located(*_indexed_start(files, fd, index, base_offset, offset, end_position))
    for position, header in sound_headers(
        files,
        fd,
        start_position=behind.position,
        end_position=end_position,
        expected_offset=behind.base_offset,
    ):
        if header.last_offset >= offset:
            # A gap before this batch is damage: report where it starts, not what lies behind it.
            return Located(position, header.base_offset) if header.base_offset <= offset else behind
        behind = Located(position + header.size_bytes, header.next_offset)
    return behind


def locate_timestamp(
    files: Files,
    fd: int,
    time_entries: bytes,
    offset_entries: bytes,
    base_offset: int,
    timestamp_ms: int,
    end_position: int,
    *,
    min_offset: int = 0,
) -> TimestampOffset | None:
    """The first record in the segment that is not older than *timestamp_ms*; None when all are older.

    Records below *min_offset*, which were deleted, do not count.

    *time_entries* and *offset_entries* are the contents of the two index files. Damaged batches are passed
    over, control batches too: neither holds a record that could be read.
    """
    times = time_entries[: time_index.used_bytes(time_entries)]
    offset = base_offset + time_index.lookup(times, timestamp_ms)
    start_position, start_offset = _indexed_start(
        files, fd, offset_entries, base_offset, offset, end_position
    )
    for position, header in sound_headers(
        files, fd, start_position=start_position, end_position=end_position, expected_offset=start_offset
    ):
        if (
            header.max_timestamp_ms >= timestamp_ms
            and header.last_offset >= min_offset
            and header.record_count
            and not header.is_control
        ):
            found = _first_record(files, fd, position, header, timestamp_ms, min_offset)
            if found is not None:
                return found
    return None


def _indexed_start(
    files: Files, fd: int, index: bytes, base_offset: int, offset: int, end_position: int
) -> tuple[int, int]:
    """The position and base offset of a batch at or before *offset*'s, near it when the index is sound."""
    entry = offset_index.lookup(index[: offset_index.used_bytes(index)], offset - base_offset)
    if entry is None or not 0 < entry.position < end_position:
        return 0, base_offset
    try:
        header = read_header(files.pread(fd, HEADER_BYTES, entry.position))
    except CorruptBatchError:
        return 0, base_offset
    # Either may be wrong: the index, which is a cache, or the batch's base offset, which no checksum covers.
    # They are believed where they agree on the batch's last offset.
    if header.last_offset - base_offset != entry.relative_offset or header.base_offset < base_offset:
        return 0, base_offset
    if header.partition_leader_epoch != 0:
        return 0, base_offset
    return entry.position, header.base_offset


def _first_record(
    files: Files, fd: int, position: int, header: BatchHeader, timestamp_ms: int, min_offset: int
) -> TimestampOffset | None:
    try:
        batch = read_batch(files.pread(fd, header.size_bytes, position))
        records = decode_records(batch)
    except CorruptBatchError:
        return None
    for record in records:
        if record.timestamp_ms >= timestamp_ms and record.offset >= min_offset:
            return TimestampOffset(record.offset, record.timestamp_ms)
    return None


# Indexes ------------------------------------------------------------------------------------------------


class IndexBuilder:
    """Kafka's rule for both indexes of one segment, fed with its batches in order.

    A batch gets an offset index entry when it starts more than *index_interval_bytes* behind the last one
    that got one (or behind the segment's start), and then a time index entry too if the largest timestamp
    has grown since the last of those.
    """

    def __init__(self, base_offset: int, index_interval_bytes: int) -> None:
        self._base_offset = base_offset
        self._interval_bytes = index_interval_bytes
        self._indexed_position = 0
        self._max_timestamp_ms = self._indexed_timestamp_ms = -1
        self._max_timestamp_offset = base_offset
        self._offset_entries = bytearray()
        self._time_entries = bytearray()

    def add(self, position: int, header: BatchHeader) -> None:
        """Take in the batch at *position*."""
        if header.max_timestamp_ms > self._max_timestamp_ms:
            self._max_timestamp_ms = header.max_timestamp_ms
            self._max_timestamp_offset = header.last_offset
        if position - self._indexed_position <= self._interval_bytes:
            return
        relative_offset = header.last_offset - self._base_offset
        if relative_offset <= offset_index.MAX_RELATIVE_OFFSET:
            self._offset_entries += offset_index.encode_entry(relative_offset, position)
        self._indexed_position = position
        self._add_time_entry()

    def seal(self) -> IndexBytes:
        """Both indexes, as of a rolled or closed segment: the largest timestamp ends the time index."""
        self._add_time_entry()
        return IndexBytes(bytes(self._offset_entries), bytes(self._time_entries))

    def _add_time_entry(self) -> None:
        if self._max_timestamp_ms <= self._indexed_timestamp_ms:
            return
        relative_offset = self._max_timestamp_offset - self._base_offset
        time_index.add_entry(self._time_entries, self._max_timestamp_ms, relative_offset)
        self._indexed_timestamp_ms = self._max_timestamp_ms


def build_indexes(
    files: Files, fd: int, base_offset: int, end_position: int, index_interval_bytes: int
) -> IndexBytes:
    """What the indexes of a sealed segment must hold, from its batches; damaged ones get no entry."""
    builder = IndexBuilder(base_offset, index_interval_bytes)
    for position, header in sound_headers(
        files, fd, start_position=0, end_position=end_position, expected_offset=base_offset
    ):
        builder.add(position, header)
    return builder.seal()


def rebuild_indexes(
    files: Files, directory: str, base_offset: int, end_position: int, index_interval_bytes: int
) -> IndexBytes:
    """Write both index files of a sealed segment anew, in place, and return what they hold.

    Not synced: they are caches, and a torn one is seen by its check. Readers meanwhile find a shorter
    index, which only makes them scan further.
    """
    stem = f"{directory}/{segment_name(base_offset)}"
    log_fd = files.open(stem + LOG_SUFFIX, readonly=True)
    try:
        built = build_indexes(files, log_fd, base_offset, end_position, index_interval_bytes)
    finally:
        files.close(log_fd)
    for suffix, content in ((OFFSET_INDEX_SUFFIX, built.offset_index), (TIME_INDEX_SUFFIX, built.time_index)):
        _overwrite(files, stem + suffix, content)
    return built


def _overwrite(files: Files, path: str, content: bytes) -> None:
    fd = files.open(path, create=True)
    try:
        files.truncate(fd, 0)
        files.pwrite(fd, content, 0)
    finally:
        files.close(fd)
