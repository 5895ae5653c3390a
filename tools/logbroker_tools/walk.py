"""Every batch of a segment, going on behind damage; CRCs by crcmod, which the writer does not use.

A sound batch is one whose header can be one, that lies wholly in the file, whose CRC matches, and that has
the offset and epoch that are due. Anything else is ``Damaged``, with the place where the next sound batch
begins. The CRC covers neither base offset, length nor epoch; a flipped bit there is seen by what is due:

    field         due in a log of ours       due in one of Kafka's, which compaction leaves with gaps
    base offset   the last offset + 1        more than the last offset; and where it skips some, the batch
                                             behind it must not go back into what was skipped
    epoch         0                          not below the last; and where it grows, the batch behind
                                             must not go back below it

So a single wrong base offset in Kafka's log is blamed on the batch that has it, not on the next.
Zeros at the end of a partition's last segment are room that its writer left in advance: the log ends there.
Memory: one block of 1 MiB, and one batch of at most ``MAX_BATCH_BYTES``.
"""

from __future__ import annotations

from collections.abc import Iterator

import crcmod.predefined
import msgspec

from logbroker_storage.errors import BatchDefect, CorruptBatchError
from logbroker_storage.files import Files
from logbroker_storage.record_batch import (
    CRC_START,
    HEADER_BYTES,
    MAGIC,
    MAX_DECOMPRESSED_BYTES,
    BatchHeader,
    Record,
    StoredBatch,
    decode_records,
    read_header,
)
from logbroker_storage.segment import MAX_RELATIVE_OFFSET, SoundBatch, next_sound_batch

BLOCK_BYTES = 1 << 20
MAX_BATCH_BYTES = HEADER_BYTES + MAX_DECOMPRESSED_BYTES  # the decoder refuses larger ones: not read at all
MAGIC_POSITION = 16

_crc32c = crcmod.predefined.mkPredefinedCrcFun("crc-32c")


class Sound(msgspec.Struct, frozen=True):
    """A batch that passed every check of its own; ``data`` is empty for one above ``MAX_BATCH_BYTES``."""

    position: int
    header: BatchHeader
    data: memoryview

    def records(self, topic: str, partition: int) -> list[Record]:
        """Its records; ``CorruptBatchError`` when they do not parse or are too many to look at."""
        if not self.data:
            raise CorruptBatchError(BatchDefect.TOO_LARGE, position=self.position)
        return decode_records(StoredBatch(self.header, self.data), topic, partition)


class Damaged(msgspec.Struct, frozen=True):
    """Bytes [position, end_position) and offsets [start_offset, end_offset) that cannot be read.

    ``end_offset`` is None where nothing tells: nothing sound follows, in this segment or as another.
    """

    position: int
    end_position: int
    start_offset: int
    end_offset: int | None
    defect: BatchDefect


def walk(
    files: Files,
    fd: int,
    *,
    end_position: int,
    base_offset: int | None,
    ours: bool,
    next_base: int | None = None,
) -> Iterator[Sound | Damaged]:
    """The batches of a log file in order.

    *base_offset* is what its name says, None when it says nothing; *next_base* is that of the next segment.
    """
    blocks = _Blocks(files, fd, end_position)
    position, due_offset, epoch = 0, base_offset, -1
    while position < end_position:
        batch = _batch_at(blocks, position)
        if isinstance(batch, BatchDefect):
            if next_base is None and blocks.are_blank_from(position):
                return
            blocks.forget()  # a writer at work may have filled what was room when it was read ahead
            batch = _batch_at(blocks, position)
        defect = batch if isinstance(batch, BatchDefect) else None
        if isinstance(batch, Sound):
            if ours:
                defect = _misplaced_in_ours(batch.header, due_offset)
            else:
                ahead = blocks.headers(position + batch.header.size_bytes, 2)
                defect = _misplaced_in_kafkas(batch.header, ahead, due_offset, epoch, next_base)
                if base_offset is not None and batch.header.last_offset - base_offset > MAX_RELATIVE_OFFSET:
                    defect = BatchDefect.BAD_OFFSET  # no index could name it: no segment holds such offsets
            if defect is None:
                yield batch
                position += batch.header.size_bytes
                due_offset, epoch = batch.header.next_offset, batch.header.partition_leader_epoch
                continue
        assert defect is not None
        start_offset = due_offset or 0
        if ours:
            sound = next_sound_batch(files, fd, position, end_position=end_position, min_offset=start_offset)
        else:
            sound = _next_batch_of_kafkas(blocks, position, start_offset)
        if sound is None:
            yield Damaged(position, end_position, start_offset, next_base, defect)
            return
        yield Damaged(position, sound.position, start_offset, sound.base_offset, defect)
        position, due_offset = sound


class _Blocks:
    """A file read in blocks, for what goes through it from front to back."""

    def __init__(self, files: Files, fd: int, end_position: int) -> None:
        self.end_position = end_position
        self._files = files
        self._fd = fd
        self._start = 0
        self._block = memoryview(b"")

    def forget(self) -> None:
        """Read anew what comes next."""
        self._block = memoryview(b"")

    def read(self, position: int, size: int) -> memoryview:
        """Up to *size* bytes from *position*; fewer where the file ends."""
        size = max(0, min(size, self.end_position - position))
        at = position - self._start
        if at < 0 or at + size > len(self._block):
            wanted = min(max(size, BLOCK_BYTES), self.end_position - position)
            self._block = memoryview(self._files.pread(self._fd, max(0, wanted), position))
            self._start, at = position, 0
        return self._block[at : at + size]

    def header(self, position: int) -> BatchHeader | None:
        """The header at *position* if there can be one."""
        data = self._block_or_read(position)
        try:
            return read_header(data)
        except CorruptBatchError:
            return None

    def headers(self, position: int, count: int) -> list[BatchHeader]:
        """Up to *count* headers one behind the other, as long as there can be one."""
        found: list[BatchHeader] = []
        while len(found) < count and (header := self.header(position)) is not None:
            found.append(header)
            position += header.size_bytes
        return found

    def _block_or_read(self, position: int) -> memoryview | bytes:
        at = position - self._start  # a glance ahead must not move the block away from the batch before it
        if 0 <= at <= len(self._block) - HEADER_BYTES:
            return self._block[at : at + HEADER_BYTES]
        return self._files.pread(self._fd, max(0, min(HEADER_BYTES, self.end_position - position)), position)

    def are_blank_from(self, position: int) -> bool:
        """Whether nothing but zeros lies behind *position*."""
        while position < self.end_position:
            piece = self._files.pread(self._fd, min(BLOCK_BYTES, self.end_position - position), position)
            if piece.strip(b"\0"):
                return False
            position += len(piece) or self.end_position  # the file shrank under our hands
        return True

    def crc_matches(self, position: int, header: BatchHeader) -> bool:
        crc = 0
        at, end = position + CRC_START, position + header.size_bytes
        while at < end:
            piece = self._files.pread(self._fd, min(BLOCK_BYTES, end - at), at)
            if not piece:
                return False
            crc = _crc32c(piece, crc)
            at += len(piece)
        return crc == header.crc


def _batch_at(blocks: _Blocks, position: int) -> Sound | BatchDefect:
    try:
        header = read_header(blocks.read(position, HEADER_BYTES))
    except CorruptBatchError as error:
        return error.defect
    if position + header.size_bytes > blocks.end_position:
        return BatchDefect.TRUNCATED
    if header.size_bytes > MAX_BATCH_BYTES:
        if not blocks.crc_matches(position, header):
            return BatchDefect.BAD_CRC
        return Sound(position, header, memoryview(b""))
    data = blocks.read(position, header.size_bytes)
    if len(data) < header.size_bytes:
        return BatchDefect.TRUNCATED  # the file shrank under our hands
    if _crc32c(data[CRC_START:]) != header.crc:
        return BatchDefect.BAD_CRC
    return Sound(position, header, data)


def _misplaced_in_ours(header: BatchHeader, due_offset: int | None) -> BatchDefect | None:
    if due_offset is not None and header.base_offset != due_offset:
        return BatchDefect.BAD_OFFSET
    return BatchDefect.BAD_EPOCH if header.partition_leader_epoch != 0 else None


def _misplaced_in_kafkas(
    header: BatchHeader,
    ahead: list[BatchHeader],
    due_offset: int | None,
    epoch: int,
    next_base: int | None,
) -> BatchDefect | None:
    """By what went before, and the next two headers *ahead*."""
    if due_offset is not None and header.base_offset != due_offset:
        if header.base_offset < due_offset:
            return BatchDefect.BAD_OFFSET
        if ahead and due_offset <= ahead[0].base_offset < header.next_offset:
            return BatchDefect.BAD_OFFSET
        if next_base is not None and header.next_offset > next_base:
            return BatchDefect.BAD_OFFSET
    if header.partition_leader_epoch < epoch:
        return BatchDefect.BAD_EPOCH
    if ahead and all(
        epoch <= behind.partition_leader_epoch < header.partition_leader_epoch for behind in ahead
    ):
        return (
            BatchDefect.BAD_EPOCH
        )  # it grows for one batch only; were it the next that is wrong, two would agree
    return None


# Behind damage in a log of Kafka's ----------------------------------------------------------------------


def _next_batch_of_kafkas(blocks: _Blocks, damaged_position: int, min_offset: int) -> SoundBatch | None:
    """As storage's ``next_sound_batch``, which knows only the epoch that ours have."""
    claimed = blocks.header(damaged_position)
    if claimed is not None:
        following = _sound_at(blocks, damaged_position + claimed.size_bytes, min_offset)
        if following is not None:
            return following
    high_halves = [(min_offset + ahead >> 32).to_bytes(4, "big") for ahead in (0, MAX_RELATIVE_OFFSET)]
    position = damaged_position + 1
    while position + HEADER_BYTES <= blocks.end_position:
        block = bytes(blocks.read(position, BLOCK_BYTES))
        found = block.find(MAGIC, MAGIC_POSITION)
        while found >= 0:
            at = found - MAGIC_POSITION
            if block[at : at + 4] in high_halves:  # of the base offset; spares nearly all a closer look
                sound = _sound_at(blocks, position + at, min_offset)
                if sound is not None:
                    return sound
            found = block.find(MAGIC, found + 1)
        if len(block) < HEADER_BYTES:
            return None
        position += len(block) - MAGIC_POSITION  # the magic may lie across the end of the block
    return None


def _sound_at(blocks: _Blocks, position: int, min_offset: int) -> SoundBatch | None:
    header = blocks.header(position)
    if (
        header is None
        or not min_offset <= header.base_offset <= min_offset + MAX_RELATIVE_OFFSET
        or position + header.size_bytes > blocks.end_position
        or not blocks.crc_matches(position, header)
    ):
        return None
    return SoundBatch(position, header.base_offset)
