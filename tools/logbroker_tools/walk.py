"""Every batch of a segment, going on behind damage; CRCs by crcmod, which the writer does not use.

A sound batch is one whose header can be one, that lies wholly in the file, whose CRC matches, and that has
the offset and epoch that are due. Anything else is ``Damaged``, with the place where the next sound batch
begins. The CRC covers neither base offset, length nor epoch: a flipped bit there is seen by what is due.
"""

from __future__ import annotations

from collections.abc import Iterator

import crcmod.predefined
import msgspec

from logbroker_storage.errors import BatchDefect, CorruptBatchError
from logbroker_storage.files import Files
from logbroker_storage.record_batch import CRC_START, HEADER_BYTES, BatchHeader, StoredBatch, read_header
from logbroker_storage.segment import next_sound_batch

READ_BYTES = 4 << 20

_crc32c = crcmod.predefined.mkPredefinedCrcFun("crc-32c")


class Sound(msgspec.Struct, frozen=True):
    """A batch that passed every check of its own."""

    position: int
    header: BatchHeader
    data: bytes

    def stored(self) -> StoredBatch:
        return StoredBatch(self.header, memoryview(self.data))


class Damaged(msgspec.Struct, frozen=True):
    """Bytes [position, end_position) and offsets [start_offset, end_offset) that cannot be read.

    ``end_offset`` is None where nothing sound follows in the file.
    """

    position: int
    end_position: int
    start_offset: int
    end_offset: int | None
    defect: BatchDefect


def walk(
    files: Files, fd: int, *, end_position: int, base_offset: int | None, ours: bool
) -> Iterator[Sound | Damaged]:
    """The batches of a log file in order. *base_offset* is what its name says, None when it says nothing."""
    position = 0
    due_offset = base_offset
    while position < end_position:
        batch = _batch_at(files, fd, position, end_position)
        defect = batch if isinstance(batch, BatchDefect) else _misplaced(batch.header, due_offset, ours)
        if defect is None:
            assert isinstance(batch, Sound)
            yield batch
            position += batch.header.size_bytes
            due_offset = batch.header.next_offset
            continue
        start_offset = due_offset or 0
        sound = next_sound_batch(files, fd, position, end_position=end_position, min_offset=start_offset)
        if sound is None:
            yield Damaged(position, end_position, start_offset, None, defect)
            return
        yield Damaged(position, sound.position, start_offset, sound.base_offset, defect)
        position, due_offset = sound


def _batch_at(files: Files, fd: int, position: int, end_position: int) -> Sound | BatchDefect:
    try:
        header = read_header(files.pread(fd, HEADER_BYTES, position))
    except CorruptBatchError as error:
        return error.defect
    if position + header.size_bytes > end_position:
        return BatchDefect.TRUNCATED
    data = files.pread(fd, header.size_bytes, position)
    if _crc32c(data[CRC_START:]) != header.crc:
        return BatchDefect.BAD_CRC
    return Sound(position, header, data)


def _misplaced(header: BatchHeader, due_offset: int | None, ours: bool) -> BatchDefect | None:
    if (
        due_offset is not None
        and header.base_offset != due_offset
        and (ours or header.base_offset < due_offset)
    ):
        return BatchDefect.BAD_OFFSET
    if ours and header.partition_leader_epoch != 0:
        return BatchDefect.BAD_EPOCH
    return None
