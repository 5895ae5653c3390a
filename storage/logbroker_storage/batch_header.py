"""The 61 bytes before the records of a batch: where it lies in the log, whose it is, whether it is whole.

    at  size  field                   type    meaning
     0     8  base_offset             int64   offset of the first record
     8     4  batch_length            int32   bytes after this field
    12     4  partition_leader_epoch  int32   0 in our own logs, -1 before a broker assigned it
    16     1  magic                   int8    2, the only version read here
    17     4  crc                     uint32  CRC-32C of everything from attributes to the end
    21     2  attributes              int16   bits 0-2 codec, 3 log-append time, 4 transactional, 5 control
    23     4  last_offset_delta       int32   last offset minus base_offset, also after compaction
    27     8  base_timestamp_ms       int64   what the records' timestamp deltas count from
    35     8  max_timestamp_ms        int64   the largest of them, or the append time
    43     8  producer_id             int64   -1 without idempotence
    51     2  producer_epoch          int16   -1 likewise
    53     4  base_sequence           int32   of the first record; -1 likewise
    57     4  record_count            int32   less than last_offset_delta + 1 after compaction

Source: the Kafka protocol guide, "Record Batch". The first four fields are outside the checksum, so that a
broker can assign offset and epoch without reading the batch: they are checked against the neighbours.

Invariants of a header that ``read_header`` returns: no negative offset, delta or count; at most one record
for each offset; a known codec; an uncompressed batch is large enough for its records.
"""

from __future__ import annotations

import struct

import msgspec

from .compression import Buffer, Compression
from .crc32c import crc32c
from .errors import BatchDefect, CorruptBatchError

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES = HEADER.size
LENGTH_PREFIX_BYTES = 12  # base offset and batch length, which the length does not count
CRC_START = 21  # the attributes: the first byte that the checksum covers
MIN_BATCH_LENGTH = HEADER_BYTES - LENGTH_PREFIX_BYTES
MAX_BATCH_LENGTH = (1 << 31) - 1
MIN_RECORD_BYTES = 7  # every field of the record in one byte, key and value null

MAGIC = 2
MAGIC_POSITION = 16
OFFSET_MAX = (1 << 63) - 1
SEQUENCE_MASK = (1 << 31) - 1

CODEC_MASK = 0x07
LOG_APPEND_TIME = 0x08
TRANSACTIONAL = 0x10
CONTROL = 0x20

_BASE_OFFSET = struct.Struct(">q")
_LEADER_EPOCH = struct.Struct(">i")
_LEADER_EPOCH_POSITION = 12
_CRC = struct.Struct(">I")
_CRC_POSITION = 17
_CODECS = tuple(Compression)  # a tuple index takes 20 ns, Compression(code) ten times that
_ZEROS = bytes(HEADER_BYTES)


class BatchHeader(msgspec.Struct, frozen=True, gc=False):
    """The fields of the header, in the order of the bytes; times are milliseconds since 1970."""

    base_offset: int
    batch_length: int
    partition_leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size_bytes(self) -> int:
        """The whole batch, header included."""
        return LENGTH_PREFIX_BYTES + self.batch_length

    @property
    def last_offset(self) -> int:
        """The last offset that the batch stands for, inclusive, whether or not its record is still there."""
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self) -> int:
        """The base offset of the batch behind this one."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def is_whole(self) -> bool:
        """True when it has a record of each of its offsets: compaction left out none."""
        return self.record_count == self.last_offset_delta + 1

    @property
    def last_sequence(self) -> int:
        """The sequence of the last record, wrapped to 31 bits; -1 without a sequence."""
        if self.base_sequence < 0:
            return -1
        return (self.base_sequence + self.last_offset_delta) & SEQUENCE_MASK

    @property
    def compression(self) -> Compression:
        return _CODECS[self.attributes & CODEC_MASK]

    @property
    def uses_log_append_time(self) -> bool:
        """True when every record's timestamp is ``max_timestamp_ms``."""
        return bool(self.attributes & LOG_APPEND_TIME)

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & TRANSACTIONAL)

    @property
    def is_control(self) -> bool:
        """True for a transaction marker, which consumers never see."""
        return bool(self.attributes & CONTROL)


class StoredBatch(msgspec.Struct, frozen=True, gc=False):
    """A batch whose checksum was right: its header and all of its bytes, header included.

    ``data`` is a view into the buffer that the batch was read from, and keeps that buffer alive.
    """

    header: BatchHeader
    data: memoryview


def read_header(buffer: Buffer, position: int = 0) -> BatchHeader:
    """The header at *position*, checked for everything that needs no other byte.

    Raises ``CorruptBatchError``. The records need not be in the buffer, and the checksum is not looked at.
    """
    if len(buffer) - position < HEADER_BYTES:
        raise CorruptBatchError(BatchDefect.TRUNCATED, position=position, detail="the header is cut short")
    header = BatchHeader(*HEADER.unpack_from(buffer, position))
    defect = _header_defect(header)
    if defect is None:
        return header
    if buffer[position : position + HEADER_BYTES] == _ZEROS:
        defect = BatchDefect.ZEROS
    raise CorruptBatchError(defect, position=position, detail=repr(header))


def _header_defect(header: BatchHeader) -> BatchDefect | None:
    if header.magic != MAGIC:
        return BatchDefect.BAD_MAGIC
    if header.batch_length < MIN_BATCH_LENGTH:
        return BatchDefect.BAD_LENGTH
    codec = header.attributes & CODEC_MASK
    if (
        header.base_offset < 0
        or header.last_offset_delta < 0
        or header.base_offset > OFFSET_MAX - header.last_offset_delta - 1
        or header.partition_leader_epoch < -1
        or header.producer_id < -1
        or header.producer_epoch < -1
        or header.base_sequence < -1
        or not 0 <= header.record_count <= header.last_offset_delta + 1
        or codec > Compression.ZSTD
        or (
            codec == Compression.NONE
            and header.record_count * MIN_RECORD_BYTES > header.batch_length - MIN_BATCH_LENGTH
        )
    ):
        return BatchDefect.BAD_HEADER
    return None


def check_crc(buffer: Buffer, position: int, header: BatchHeader) -> bool:
    """Whether the checksum is right; *buffer* must hold the whole batch at *position*."""
    covered = memoryview(buffer)[position + CRC_START : position + header.size_bytes]
    return crc32c(covered) == header.crc


def read_batch(buffer: Buffer, position: int = 0) -> StoredBatch:
    """The batch at *position*, its header and checksum right; ``CorruptBatchError`` says what is not."""
    header = read_header(buffer, position)
    end = position + header.size_bytes
    if end > len(buffer):
        raise CorruptBatchError(
            BatchDefect.TRUNCATED, position=position, detail=f"{end - len(buffer)} bytes are missing"
        )
    data = memoryview(buffer)[position:end]
    if crc32c(data[CRC_START:]) != header.crc:
        raise CorruptBatchError(BatchDefect.BAD_CRC, position=position)
    return StoredBatch(header, data)


def assign(batch: bytearray, base_offset: int, leader_epoch: int) -> None:
    """Give an encoded batch its place in the log: in place, outside the checksum."""
    _BASE_OFFSET.pack_into(batch, 0, base_offset)
    _LEADER_EPOCH.pack_into(batch, _LEADER_EPOCH_POSITION, leader_epoch)


def stamp_append_time(batch: bytearray, timestamp_ms: int) -> None:
    """Make *timestamp_ms* the timestamp of every record of an encoded batch, and renew the checksum.

    What a topic with ``message.timestamp.type=LogAppendTime`` does to each batch. The records keep the
    deltas that their producer gave them, as with Kafka; readers do not look at them.
    """
    header = read_header(batch)
    stamped = msgspec.structs.replace(
        header, attributes=header.attributes | LOG_APPEND_TIME, max_timestamp_ms=timestamp_ms
    )
    write_header(batch, stamped)


def stamp_max_timestamp(batch: bytearray, timestamp_ms: int) -> None:
    """Have the header of an encoded batch say that *timestamp_ms* is its newest record's, and renew the checksum."""
    write_header(batch, msgspec.structs.replace(read_header(batch), max_timestamp_ms=timestamp_ms))


def write_header(batch: bytearray, header: BatchHeader) -> None:
    """Put *header* before the records that *batch* holds, with the checksum of what is then there."""
    HEADER.pack_into(batch, 0, *msgspec.structs.astuple(header))
    _CRC.pack_into(batch, _CRC_POSITION, crc32c(memoryview(batch)[CRC_START:]))


def find_next_batch(buffer: Buffer, start: int, *, min_offset: int) -> int | None:
    """The first position at or above *start* of a batch that is whole and not older than *min_offset*.

    Looks behind damage for the place where the log goes on. Only a right checksum counts, so a batch that
    is cut short by the buffer's end is not found. A record's value may itself contain a whole batch (a
    copy of a log, say): *min_offset* rejects such a copy unless its offsets run ahead of the log's.
    """
    data = bytes(buffer) if isinstance(buffer, memoryview) else buffer
    magic_position = data.find(MAGIC, start + MAGIC_POSITION)
    while magic_position >= 0:
        position = magic_position - MAGIC_POSITION
        if _is_batch(data, position, min_offset):
            return position
        magic_position = data.find(MAGIC, magic_position + 1)
    return None


def _is_batch(data: bytes | bytearray, position: int, min_offset: int) -> bool:
    if len(data) - position < HEADER_BYTES:
        return False
    header = BatchHeader(*HEADER.unpack_from(data, position))
    return (
        _header_defect(header) is None
        and header.base_offset >= min_offset
        and position + header.size_bytes <= len(data)
        and check_crc(data, position, header)
    )
