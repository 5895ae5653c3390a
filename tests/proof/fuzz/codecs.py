"""Targets of the storage format: batches, what they are compressed with, journal events, the small files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import ModuleType

from logbroker_storage import (
    aborted_index,
    checkpoints,
    offset_index,
    producer_snapshot,
    record_decoding,
    record_loops,
    record_survey,
    time_index,
)
from logbroker_storage.compression import Compression, compress, decompress
from logbroker_storage.crc32c import crc32c
from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.events import decode_attempts, decode_event, encode_event
from logbroker_storage.record_batch import (
    CRC_START,
    HEADER_BYTES,
    LENGTH_PREFIX_BYTES,
    MAGIC,
    Record,
    StoredBatch,
    control_type_of,
    decode_control_record,
    decode_records,
    read_batch,
)
from logbroker_storage.record_survey import Survey, survey_decoded, survey_without_headers
from logbroker_storage.record_twin import compiled_loops

from .target import MIB, Target

MAX_DECOMPRESSED_BYTES = MIB


def _twin() -> ModuleType | None:
    try:
        return compiled_loops()
    except ImportError:
        return None  # it was not built here


TWIN = _twin()


# Batches --------------------------------------------------------------------------------------------------


def resealed(data: bytes) -> bytes:
    """*data* with the length, the magic and the checksum of a batch: without them nothing gets past the header."""
    batch = bytearray(data)
    batch[8:12] = (len(data) - LENGTH_PREFIX_BYTES).to_bytes(4, "big")
    batch[12:17] = bytes([0, 0, 0, 0, MAGIC])
    batch[CRC_START - 4 : CRC_START] = crc32c(bytes(batch[CRC_START:])).to_bytes(4, "big")
    return bytes(batch)


def _decode(data: bytes) -> None:
    batch = read_batch(memoryview(data), 0)
    header = batch.header
    found = _records_of(batch, record_loops)
    if TWIN is not None:
        assert repr(_records_of(batch, TWIN)) == repr(found), (
            "both codecs read the same, or refuse for the same reason"
        )
    surveyed = _survey_of(batch, record_loops)
    if TWIN is not None:
        assert _survey_of(batch, TWIN) == surveyed, "both codecs survey the same"
    if isinstance(found, CorruptBatchError):
        assert surveyed is None, "what does not parse is not taken for sound"
        raise found
    assert surveyed is None or surveyed == survey_decoded(batch, "", -1), (
        "a survey tells what the records tell"
    )
    records = found
    assert len(records) == header.record_count, "decoding gives all the records that are announced, or none"
    offsets = [record.offset for record in records]
    assert offsets == sorted(set(offsets)), "offsets increase"
    assert not offsets or header.base_offset <= offsets[0] <= offsets[-1] <= header.last_offset
    if header.is_control:
        control_type_of(batch)
        for record in records:
            decode_control_record(record)


def _records_of(batch: StoredBatch, loops: ModuleType) -> list[Record] | CorruptBatchError:
    vars(record_decoding)["read_each"] = loops.read_each
    try:
        return decode_records(batch, max_decompressed_bytes=MAX_DECOMPRESSED_BYTES)
    except CorruptBatchError as error:
        return error


def _survey_of(batch: StoredBatch, loops: ModuleType) -> Survey | None:
    vars(record_survey)["survey_each"] = loops.survey_each
    with suppress(CorruptBatchError):  # of its compression, which is not for a survey to tell
        return survey_without_headers(batch, max_decompressed_bytes=MAX_DECOMPRESSED_BYTES)
    return None


def try_batch(data: bytes) -> None:
    with suppress(CorruptBatchError):
        _decode(data)
    if len(data) >= HEADER_BYTES:
        _decode(resealed(data))


# Compression ----------------------------------------------------------------------------------------------


def decompressor(codec: Compression) -> Callable[[bytes], None]:
    def try_compressed(data: bytes) -> None:
        assert decompress(codec, compress(codec, data), len(data)) == data
        found = decompress(codec, data, MAX_DECOMPRESSED_BYTES)
        assert len(found) <= MAX_DECOMPRESSED_BYTES
        assert decompress(codec, compress(codec, found), len(found)) == found

    return try_compressed


# Events ---------------------------------------------------------------------------------------------------


def try_event(data: bytes) -> None:
    with suppress(CorruptBatchError):
        decode_attempts(data)
    event = decode_event(data)
    assert event.key().startswith(event.KIND.encode())
    assert decode_event(encode_event(event)) == event


# Small files ----------------------------------------------------------------------------------------------


def try_small_file(data: bytes) -> None:
    """Every parser, whatever the file: each may find something of its own in it."""
    for parse in (
        checkpoints.parse_leader_epochs,
        checkpoints.parse_partition_offsets,
        checkpoints.parse_partition_metadata,
        checkpoints.parse_meta_properties,
        producer_snapshot.parse,
    ):
        with suppress(ValueError):
            parse(data)
    _look_up(data)
    checked = bytearray(data[: producer_snapshot.HEADER_BYTES])
    if len(checked) == producer_snapshot.HEADER_BYTES:
        body = data[producer_snapshot.CRC_START :]
        producer_snapshot.HEADER.pack_into(
            checked, 0, producer_snapshot.VERSION, crc32c(body), int.from_bytes(body[:4], "big", signed=True)
        )
        sealed = bytes(checked) + data[len(checked) :]
        assert producer_snapshot.encode(producer_snapshot.parse(sealed)) == sealed


def _look_up(data: bytes) -> None:
    """The indexes: those that are found sound are used."""
    if offset_index.check(data, end_relative_offset=1 << 31, end_position=1 << 31) is None:
        used = data[: offset_index.used_bytes(data)]
        assert b"".join(offset_index.encode_entry(*entry) for entry in offset_index.parse(used)) == used
        entry = offset_index.lookup(used, 1 << 30)
        assert entry is None or entry in offset_index.parse(used)
    if time_index.check(data, end_relative_offset=1 << 31) is None:
        used = data[: time_index.used_bytes(data)]
        assert b"".join(time_index.encode_entry(*entry) for entry in time_index.parse(used)) == used
        assert time_index.lookup(used, 1 << 40) >= 0
    if aborted_index.check(data, base_offset=0, end_offset=1 << 62) is None:
        assert b"".join(map(aborted_index.encode_entry, aborted_index.parse(data))) == data


TARGETS = {
    "record-batch": Target(try_batch, (CorruptBatchError,)),
    **{
        codec.name.lower(): Target(decompressor(codec), (CorruptBatchError,))
        for codec in Compression
        if codec is not Compression.NONE
    },
    "journal-event": Target(try_event, (CorruptBatchError,)),
    "small-files": Target(try_small_file, (ValueError,)),
}
