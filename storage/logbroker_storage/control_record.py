"""Transaction markers: the one record of a control batch, which says how a transaction ended.

    key    at 0  version            int16  0
           at 2  control_type       int16  0 abort, 1 commit
    value  at 0  version            int16  0
           at 2  coordinator_epoch  int32  which coordinator decided; the newest wins

Source: KIP-98. Later versions may only add bytes behind these, so longer ones are accepted.
"""

from __future__ import annotations

import enum
import struct

import msgspec

from .batch_header import StoredBatch
from .errors import BatchDefect, CorruptBatchError
from .record import NewRecord, Record
from .record_decoding import decode_records
from .record_encoding import BatchFields, encode_batch

VERSION = 0
KEY = struct.Struct(">hh")
VALUE = struct.Struct(">hi")


class ControlType(enum.IntEnum):
    """How a transaction ended."""

    ABORT = 0
    COMMIT = 1


class ControlRecord(msgspec.Struct, frozen=True, gc=False):
    """The contents of a transaction marker."""

    control_type: ControlType
    coordinator_epoch: int


def encode_control_batch(
    control_type: ControlType,
    *,
    producer_id: int,
    producer_epoch: int,
    timestamp_ms: int,
    coordinator_epoch: int = 0,
    base_offset: int = 0,
    partition_leader_epoch: int = 0,
) -> bytearray:
    """The batch that ends the producer's open transaction in this partition. It takes one offset."""
    marker = NewRecord(
        value=VALUE.pack(VERSION, coordinator_epoch),
        key=KEY.pack(VERSION, control_type),
        timestamp_ms=timestamp_ms,
    )
    fields: BatchFields = {
        "base_offset": base_offset,
        "partition_leader_epoch": partition_leader_epoch,
        "producer_id": producer_id,
        "producer_epoch": producer_epoch,
        "transactional": True,
        "control": True,
    }
    return encode_batch([marker], **fields)


def decode_control_record(record: Record) -> ControlRecord:
    """What the record of a control batch says; ``CorruptBatchError`` if it is no transaction marker."""
    key, value = record.key or b"", record.value or b""
    if len(key) < KEY.size or len(value) < VALUE.size:
        raise _no_marker(record, "key or value is too short")
    _, control_type = KEY.unpack_from(key)
    _, coordinator_epoch = VALUE.unpack_from(value)
    if control_type not in (ControlType.ABORT, ControlType.COMMIT):
        raise _no_marker(record, f"control type {control_type} is unknown")
    return ControlRecord(ControlType(control_type), coordinator_epoch)


def control_type_of(batch: StoredBatch) -> ControlType | None:
    """How the transaction ended that the control batch marks; None for Kafka's control batches of other kinds.

    Raises:
        CorruptBatchError: its record does not parse.
    """
    records = decode_records(batch)
    if not records or len(records[0].key or b"") < KEY.size:
        return None
    _, control_type = KEY.unpack_from(records[0].key or b"")
    return ControlType(control_type) if control_type in (ControlType.ABORT, ControlType.COMMIT) else None


def _no_marker(record: Record, reason: str) -> CorruptBatchError:
    return CorruptBatchError(
        BatchDefect.BAD_RECORDS, detail=f"no transaction marker at offset {record.offset}: {reason}"
    )
