"""A Kafka client of a few lines, for tests about bytes: one blocking socket, and kio's classes for the messages.

    client.send(3, 12, topics=[{"name": "orders"}])     a request, and its response
    client.begin(…), client.receive()                   the same in two steps, as many requests at once as one likes
    client.send_bytes(b"…"), client.read_frame()        bytes

Fields are named as kio names them. A field that is not given is empty, null or zero; one that the version does not
have is left out; nested messages are dictionaries; times are milliseconds.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import itertools
import socket
import struct
import time
import types
import typing
import uuid
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer

from logbroker_storage.batch_header import write_header
from logbroker_storage.record_batch import NewRecord, encode_batch, read_header

PRODUCE, FETCH, LIST_OFFSETS, METADATA, OFFSET_COMMIT, OFFSET_FETCH = 0, 1, 2, 3, 8, 9
JOIN_GROUP, HEARTBEAT, SYNC_GROUP, API_VERSIONS, CREATE_TOPICS = 11, 12, 14, 18, 19
DELETE_RECORDS, INIT_PRODUCER_ID, OFFSET_FOR_LEADER_EPOCH, ADD_PARTITIONS, END_TXN = 21, 22, 23, 24, 26

LENGTH = struct.Struct(">i")
TIMEOUT_S = 30.0


# Messages ---------------------------------------------------------------------------------------------------


def message(cls: type[Any], values: dict[str, Any]) -> Any:
    """A message of class *cls* with *values*, as far as it has such fields."""
    hints = _hints(cls)
    fields = {}
    for field in dataclasses.fields(cls):
        if field.name in values:
            fields[field.name] = _value(hints[field.name], values[field.name])
        elif field.default is dataclasses.MISSING:
            fields[field.name] = _empty(hints[field.name])
    return cls(**fields)


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _parts(hint: Any) -> tuple[Any, ...]:
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def _value(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    (hint,) = [part for part in _parts(hint) if part is not type(None)]
    if dataclasses.is_dataclass(hint):
        return message(typing.cast("type[Any]", hint), value)
    if typing.get_origin(hint) is tuple:
        return tuple(_value(typing.get_args(hint)[0], item) for item in value)
    if isinstance(value, int) and "timedelta" in repr(hint).lower():
        return datetime.timedelta(milliseconds=value)
    return value


def _empty(hint: Any) -> Any:
    parts = _parts(hint)
    if type(None) in parts:
        return None
    (hint,) = parts
    if dataclasses.is_dataclass(hint):
        return message(typing.cast("type[Any]", hint), {})
    if typing.get_origin(hint) is tuple:
        return ()
    if "timedelta" in repr(hint).lower():
        return datetime.timedelta(0)
    for kind in (bool, int, str, bytes):
        if isinstance(hint, type) and issubclass(hint, kind):
            return kind()
    return hint.__supertype__() if hasattr(hint, "__supertype__") else hint(0)


def encode(entity: Any) -> bytes:
    buffer = io.BytesIO()
    entity_writer(type(entity))(buffer, entity)
    return buffer.getvalue()


def request_bytes(api_key: int, version: int, correlation_id: int = 0, **fields: Any) -> bytes:
    """A whole request, its length before it."""
    schema = load_request_schema(api_key, version)
    head = {"request_api_key": api_key, "request_api_version": version}
    header = message(
        schema.__header_schema__, head | {"correlation_id": correlation_id, "client_id": "raw client"}
    )
    return framed(encode(header) + encode(message(schema, fields)))


def framed(payload: bytes) -> bytes:
    return LENGTH.pack(len(payload)) + payload


def response_of(payload: bytes, api_key: int, version: int) -> tuple[int, Any]:
    """The correlation id and the response in *payload*, which it must fill."""
    schema = load_response_schema(api_key, version)
    header, header_bytes = entity_reader(schema.__header_schema__)(payload, 0)
    body, body_bytes = entity_reader(schema)(payload, header_bytes)
    assert header_bytes + body_bytes == len(payload), "bytes are left behind the response"
    return header.correlation_id, body


_names = itertools.count(1)


def new_name(kind: str = "topic") -> str:
    """A name that no other test of the process has."""
    return f"{kind}-{next(_names)}"


def codes(response: Any) -> set[ErrorCode]:
    """Every error code in a response, at whatever depth."""
    return set(_codes(response))


def _codes(value: Any) -> Iterator[ErrorCode]:
    if isinstance(value, ErrorCode):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _codes(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _codes(getattr(value, field.name))


# Batches ----------------------------------------------------------------------------------------------------


def batch(*values: bytes, timestamp_ms: int | None = None, **fields: Any) -> bytes:
    """A batch of records with these values, of now."""
    now_ms = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
    return bytes(encode_batch([NewRecord(value, timestamp_ms=now_ms) for value in values], **fields))


def changed(sound: bytes, **header: Any) -> bytes:
    """*sound* with other values in its header, and a checksum that is right."""
    altered = bytearray(sound)
    write_header(altered, msgspec.structs.replace(read_header(sound), **header))
    return bytes(altered)


def resealed(damaged: bytes) -> bytes:
    """Damaged records under a length and a checksum that are right."""
    return changed(damaged, batch_length=len(damaged) - 12)


# The connection ---------------------------------------------------------------------------------------------


class RawClient:
    """One connection."""

    def __init__(self, port: int, *, receive_buffer_bytes: int | None = None) -> None:
        self._socket = socket.socket()
        if receive_buffer_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._socket.settimeout(TIMEOUT_S)
        try:
            self._socket.connect(("127.0.0.1", port))
        except BaseException:
            self._socket.close()
            raise
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._numbers = itertools.count(1)
        self._pending: deque[tuple[int, int, int]] = deque()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    # Requests -------------------------------------------------------------------------------------------------

    def send(self, api_key: int, version: int, **fields: Any) -> Any:
        """The response to a request."""
        self.begin(api_key, version, **fields)
        return self.receive()

    def begin(self, api_key: int, version: int, **fields: Any) -> None:
        """Send a request; ``receive`` gives its response after those to the requests before it."""
        correlation_id = next(self._numbers)
        self.send_bytes(request_bytes(api_key, version, correlation_id, **fields))
        self._pending.append((correlation_id, api_key, version))

    def receive(self) -> Any:
        """The response to the oldest request that has none."""
        correlation_id, api_key, version = self._pending.popleft()
        answered, body = response_of(self.read_frame(), api_key, version)
        assert answered == correlation_id
        return body

    @property
    def unanswered(self) -> int:
        """How many requests wait for their responses."""
        return len(self._pending)

    def is_alive(self) -> bool:
        """Whether the server answers on this connection."""
        return bool(self.send(API_VERSIONS, 0).error_code is ErrorCode.none)

    # Bytes ----------------------------------------------------------------------------------------------------

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read_frame(self) -> bytes:
        return self._read(self.read_frame_head())

    def read_frame_head(self) -> int:
        """The length of the frame whose bytes come next."""
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        return int(length)

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._socket.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise ConnectionError("the server closed the connection")
            data += piece
        return bytes(data)

    def is_closed_by_server(self) -> bool:
        """Wait until the server closes the connection, reading whatever it still sends; False if it does not."""
        try:
            while self._socket.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    def set_timeout(self, timeout_s: float) -> None:
        self._socket.settimeout(timeout_s)

    # What many tests ask for ------------------------------------------------------------------------------------

    def create(self, topic: str, partitions: int = 1, **config: str) -> uuid.UUID:
        """A new topic; its id. Configuration keys have ``_`` for ``.``."""
        configs = [{"name": name.replace("_", "."), "value": value} for name, value in config.items()]
        wanted = {
            "name": topic,
            "num_partitions": partitions,
            "replication_factor": 1,
            "assignments": (),
            "configs": configs,
        }
        (created,) = self.send(CREATE_TOPICS, 7, topics=[wanted], timeout=1000).topics
        assert created.error_code is ErrorCode.none, created.error_message
        topic_id: uuid.UUID = created.topic_id
        return topic_id

    def produce(self, topic: str, records: bytes | None, *, partition: int = 0, **options: Any) -> Any:
        """What is answered for one batch: offset and error code."""
        self.begin_produce(topic, records, partition=partition, **options)
        ((answer,),) = [found.partition_responses for found in self.receive().responses]
        return answer

    def begin_produce(
        self,
        topic: str,
        records: bytes | None,
        *,
        partition: int = 0,
        version: int = 12,
        acks: int = -1,
        transactional_id: str | None = None,
    ) -> None:
        data = [{"name": topic, "partition_data": [{"index": partition, "records": records}]}]
        self.begin(
            PRODUCE, version, topic_data=data, acks=acks, timeout=5000, transactional_id=transactional_id
        )

    def fetch(self, wanted: dict[str, int], *, version: int = 12, **options: Any) -> Any:
        """What is answered for partition 0 of each topic, from an offset on."""
        self.begin_fetch(wanted, version=version, **options)
        return self.receive()

    def begin_fetch(
        self, wanted: dict[str, int], *, version: int = 12, partition_max_bytes: int = 1 << 30, **options: Any
    ) -> None:
        topics = [
            {"topic": topic, "partitions": [fetch_partition(offset, partition_max_bytes)]}
            for topic, offset in wanted.items()
        ]
        fields = {"max_wait": 0, "min_bytes": 1, "max_bytes": 1 << 30, "topics": topics}
        self.begin(FETCH, version, **(fields | options))

    def commit(self, group: str, topic: str, offset: int) -> None:
        """Commit *offset* of partition 0, for a group without members."""
        part = {"partition_index": 0, "committed_offset": offset, "committed_leader_epoch": -1}
        topics = [{"name": topic, "partitions": [part]}]
        answer = self.send(OFFSET_COMMIT, 8, group_id=group, generation_id_or_member_epoch=-1, topics=topics)
        assert codes(answer) == {ErrorCode.none}

    def end_offset(self, topic: str, partition: int = 0) -> int:
        """Where the partition ends: how many records it was ever given."""
        wanted = [{"name": topic, "partitions": [{"partition_index": partition, "timestamp": -1}]}]
        ((answer,),) = [found.partitions for found in self.send(LIST_OFFSETS, 7, topics=wanted).topics]
        assert answer.error_code is ErrorCode.none
        end_offset: int = answer.offset
        return end_offset

    def new_producer(self, transactional_id: str | None = None) -> tuple[int, int]:
        """A producer id and its epoch."""
        answer = self.send(
            INIT_PRODUCER_ID,
            4,
            transactional_id=transactional_id,
            transaction_timeout=60_000,
            producer_id=-1,
            producer_epoch=-1,
        )
        assert answer.error_code is ErrorCode.none
        return answer.producer_id, answer.producer_epoch

    def end_transaction(self, transactional_id: str, producer: tuple[int, int], *, commit: bool) -> None:
        producer_id, producer_epoch = producer
        answer = self.send(
            END_TXN,
            3,
            transactional_id=transactional_id,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            committed=commit,
        )
        assert answer.error_code is ErrorCode.none


def fetch_partition(offset: int, max_bytes: int = 1 << 30, partition: int = 0) -> dict[str, Any]:
    return {
        "partition": partition,
        "fetch_offset": offset,
        "partition_max_bytes": max_bytes,
        "current_leader_epoch": -1,
        "last_fetched_epoch": -1,
        "log_start_offset": -1,
    }


def records_of(response: Any) -> dict[Any, bytes]:
    """The bytes of batches in a fetch response, by topic name or id."""
    return {
        getattr(topic, "topic", None) or topic.topic_id: bytes(part.records or b"")
        for topic in response.responses
        for part in topic.partitions
    }


def segment_bytes(data: Path, topic: str, partition: int = 0) -> bytes:
    """The log file of a partition that has one segment."""
    return (data / "logs" / f"{topic}-{partition}" / f"{0:020}.log").read_bytes()
