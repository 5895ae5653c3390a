"""Kafka's RecordBatch v2: every durable byte of a log is one of these, end to end.

    +---------------------------+-----------------------------------------------+
    | header, 61 bytes          | records, compressed together or not at all    |
    | (``batch_header``)        | (``record_encoding``, ``record_decoding``)    |
    +---------------------------+-----------------------------------------------+

A producer encodes a batch once; the log only ``assign``s it an offset, outside the checksum; readers take
it with ``read_batch`` and its records with ``decode_records``. Transaction markers are batches of their own
(``control_record``). This module is the one name under which other layers import all of it.

Record headers whose key starts with ``logbroker.`` are reserved. ``logbroker.ttl.ms`` is an int64: how many
milliseconds after its timestamp the record expires.
"""

from .batch_header import (
    CRC_START,
    HEADER,
    HEADER_BYTES,
    LENGTH_PREFIX_BYTES,
    MAGIC,
    BatchHeader,
    StoredBatch,
    assign,
    check_crc,
    find_next_batch,
    read_batch,
    read_header,
    stamp_append_time,
    stamp_max_timestamp,
)
from .compression import Compression
from .control_record import (
    ControlRecord,
    ControlType,
    control_type_of,
    decode_control_record,
    encode_control_batch,
)
from .record import NO_TIMESTAMP, RESERVED_HEADER_PREFIX, NewRecord, Record
from .record_decoding import MAX_DECOMPRESSED_BYTES, Decoded, decode_batch, decode_range, decode_records
from .record_encoding import (
    BatchFields,
    encode_batch,
    encode_empty_batch,
    encode_values,
)

TTL_HEADER = "logbroker.ttl.ms"

__all__ = [
    # the header and the place in the log
    "HEADER", "HEADER_BYTES", "LENGTH_PREFIX_BYTES", "CRC_START", "MAGIC", "BatchHeader", "StoredBatch",
    "read_header", "check_crc", "read_batch", "assign", "stamp_append_time", "stamp_max_timestamp",
    "find_next_batch", "Compression",
    # records
    "NO_TIMESTAMP", "MAX_DECOMPRESSED_BYTES", "RESERVED_HEADER_PREFIX", "TTL_HEADER",
    "NewRecord", "Record", "BatchFields", "Decoded", "decode_batch", "decode_range", "decode_records",
    "encode_batch", "encode_values", "encode_empty_batch",
    # transaction markers
    "ControlType", "ControlRecord", "control_type_of", "encode_control_batch", "decode_control_record",
]  # fmt: skip
