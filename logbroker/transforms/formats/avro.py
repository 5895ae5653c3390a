"""Avro, through fastavro.

    framing         is
    plain           only the datum: whoever reads it has the schema
    single_object   C3 01, the schema's 8-byte CRC-64-AVRO fingerprint (little-endian), the datum
    confluent       00, a 4-byte schema id (big-endian), the datum
    container       a file with the writer's schema in it; a list of data. Only uncompressed ones

Logical types become Python's times, decimals and UUIDs, which JSON writes as text.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import fastavro
import msgspec
from fastavro.schema import fingerprint, to_parsing_canonical_form
from fastavro.validation import ValidationError, validate

from logbroker_storage.errors import InvalidRequestError

from ...exception_text import named
from ...nesting import MAX_DEPTH, is_too_deep
from ..draft import Draft
from ..errors import StepFailed
from ..options import Form, Step, StepOptions, Surroundings
from .avro_schema import check_schema, has_container_default

_Options = TypeVar("_Options", "DecodeAvro", "EncodeAvro")
Framing = Literal["plain", "single_object", "confluent", "container"]

SINGLE_OBJECT_MARKER = b"\xc3\x01"
SINGLE_OBJECT = struct.Struct(">2s8s")
CONFLUENT = struct.Struct(">bi")
MAX_DATA = 100_000  # in one container
HEADER = fastavro.parse_schema(
    {
        "type": "record",
        "name": "org.apache.avro.file.Header",
        "fields": [
            {"name": "magic", "type": {"type": "fixed", "name": "magic", "size": 4}},
            {"name": "meta", "type": {"type": "map", "values": "bytes"}},
            {"name": "sync", "type": {"type": "fixed", "name": "sync", "size": 16}},
        ],
    }
)


class _Schema:
    """A parsed schema, and how to read by it."""

    def __init__(self, schema: Any) -> None:
        if isinstance(schema, str) and schema.lstrip()[:1] in ("{", "[", '"'):
            try:
                schema = msgspec.json.decode(schema)
            except (ValueError, RecursionError) as error:
                raise InvalidRequestError(f"the schema is not JSON: {error}") from None
        if is_too_deep(schema, MAX_DEPTH):
            raise InvalidRequestError(f"the schema is nested deeper than {MAX_DEPTH} levels")
        try:
            self.parsed = fastavro.parse_schema(schema)
        except Exception as error:  # noqa: BLE001  (of a schema that is none, it raises what comes first)
            raise InvalidRequestError(f"the Avro schema is wrong: {named(error)}") from None
        self.contains_itself = check_schema(schema)
        # The library puts a default as it is into each datum that it reads, where a later step may change it.
        self.shares_defaults = has_container_default(schema)
        self.read = _reader(self.contains_itself)

    def fingerprint(self) -> bytes:
        """As it stands in a single object."""
        text: str = fingerprint(to_parsing_canonical_form(self.parsed), "CRC-64-AVRO")
        return bytes.fromhex(text)


def _reader(contains_itself: bool) -> Callable[..., Any]:
    if contains_itself:
        from fastavro._read_py import schemaless_reader

        return schemaless_reader
    return fastavro.schemaless_reader


class DecodeAvro(StepOptions, frozen=True):
    """Parse the value as Avro."""

    takes = Form.BYTES

    schema: dict[str, Any] | list[Any] | str | None = None  # the reader's, as a table or as JSON text
    schema_file: str | None = None  # the same, in a file
    writer_schema: dict[str, Any] | list[Any] | str | None = (
        None  # what it was written by, where that is another
    )
    framing: Framing = "plain"
    schema_id: int | None = None  # confluent: the only one that is taken

    def with_files_inlined(self, around: Surroundings) -> DecodeAvro:
        return _inlined(self, around)

    def build(self, around: Surroundings) -> Step:
        if self.framing == "container":
            read = _container_reader(None if self.schema is None else _schema_of(self.schema))
        else:
            read = _datum_reader(self)

        def decode_avro(draft: Draft) -> Draft:
            try:
                draft.payload = read(draft.payload)
            except (StepFailed, RecursionError):
                raise
            except Exception as error:  # noqa: BLE001  (of bytes that are no Avro, it raises what comes first)
                raise StepFailed(f"the value is not Avro of this schema: {named(error)}") from None
            draft.is_decoded = True
            return draft

        return decode_avro


def _datum_reader(options: DecodeAvro) -> Callable[[bytes], Any]:
    schema = _schema_of(options.schema)
    writer = schema if options.writer_schema is None else _Schema(options.writer_schema)
    reader_schema = None if writer is schema else schema.parsed
    start = _frame_reader(options.framing, writer, options.schema_id)
    read = _reader(contains_itself=writer.contains_itself or schema.contains_itself)

    def read_datum(data: bytes) -> Any:
        source = io.BytesIO(data)
        source.seek(start(data))
        datum = read(source, writer.parsed, reader_schema)
        if source.tell() != len(data):
            raise StepFailed(f"{len(data) - source.tell()} bytes are left behind the Avro datum")
        return _unshared(datum) if reader_schema is not None and schema.shares_defaults else datum

    return read_datum


def _frame_reader(framing: Framing, writer: _Schema, schema_id: int | None) -> Callable[[bytes], int]:
    """What checks the frame, and tells where the datum begins."""
    if framing == "plain":
        return lambda _: 0
    if framing == "single_object":
        expected = writer.fingerprint()

        def single_object(data: bytes) -> int:
            if data[:2] != SINGLE_OBJECT_MARKER or len(data) < SINGLE_OBJECT.size:
                raise StepFailed("the value is no Avro single object: it does not begin with C3 01")
            if data[2:10] != expected:
                raise StepFailed(
                    f"the single object is of the schema {data[2:10].hex()}, not {expected.hex()}"
                )
            return SINGLE_OBJECT.size

        return single_object

    def confluent(data: bytes) -> int:
        if len(data) < CONFLUENT.size or data[0] != 0:
            raise StepFailed("the value has no schema id: it does not begin with a zero byte and four more")
        found = CONFLUENT.unpack_from(data)[1]
        if schema_id is not None and found != schema_id:
            raise StepFailed(f"the value is of the schema {found}, not {schema_id}")
        return CONFLUENT.size

    return confluent


def _container_reader(schema: _Schema | None) -> Callable[[bytes], list[Any]]:
    reader_schema = None if schema is None else schema.parsed

    def read_container(data: bytes) -> list[Any]:
        header = fastavro.schemaless_reader(io.BytesIO(data), HEADER, None)
        assert isinstance(header, dict)
        codec = header["meta"].get("avro.codec", b"null")
        if codec != b"null":
            # What a few bytes decompress to has no bound in the library.
            raise StepFailed(f"the container is compressed ({codec!r:.40}); only uncompressed ones are read")
        try:
            writer = _Schema(header["meta"]["avro.schema"].decode())
        except InvalidRequestError as error:
            raise StepFailed(f"the container's own schema: {error}") from None
        source = io.BytesIO(data)
        found: list[Any] = []
        for datum in _container_iterator(writer.contains_itself)(source, reader_schema):
            found.append(datum)
            if len(found) > MAX_DATA:
                raise StepFailed(f"the container has more than {MAX_DATA} data")
        return _unshared(found) if schema is not None and schema.shares_defaults else found

    return read_container


def _unshared(value: Any) -> Any:
    """A copy of *value* in which each container is in one place."""
    if type(value) is dict:
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if type(value) is list else value


def _container_iterator(contains_itself: bool) -> Callable[..., Iterable[Any]]:
    if contains_itself:
        from fastavro._read_py import reader

        return reader
    return fastavro.reader


class EncodeAvro(StepOptions, frozen=True):
    """Write the value as Avro."""

    leaves = Form.BYTES

    schema: dict[str, Any] | list[Any] | str | None = None
    schema_file: str | None = None
    framing: Framing = "plain"
    schema_id: int | None = None  # confluent: the one to write

    def with_files_inlined(self, around: Surroundings) -> EncodeAvro:
        return _inlined(self, around)

    def build(self, around: Surroundings) -> Step:
        schema = _schema_of(self.schema)
        frame, is_container = b"", self.framing == "container"
        if self.framing == "single_object":
            frame = SINGLE_OBJECT_MARKER + schema.fingerprint()
        elif self.framing == "confluent":
            if self.schema_id is None or not 0 <= self.schema_id < 1 << 31:
                raise InvalidRequestError('framing = "confluent" needs schema_id, the number of the schema')
            frame = CONFLUENT.pack(0, self.schema_id)

        def encode_avro(draft: Draft) -> Draft:
            if schema.contains_itself and is_too_deep(draft.payload):
                raise StepFailed(f"the value is nested deeper than {MAX_DEPTH} levels")
            written = io.BytesIO()
            written.write(frame)
            # The writer itself checks little: it writes 1.7 as the long 1, null as false, and an int of any size.
            try:
                if is_container:
                    data = draft.payload if type(draft.payload) is list else [draft.payload]
                    for datum in data:
                        validate(datum, schema.parsed)
                    # The marker between blocks is of the content: what is written again is the same.
                    fastavro.writer(written, schema.parsed, data, sync_marker=_sync_marker(draft))
                else:
                    validate(draft.payload, schema.parsed)
                    fastavro.schemaless_writer(written, schema.parsed, draft.payload)
            except ValidationError as error:
                raise StepFailed(f"the value does not fit the Avro schema: {_differences(error)}") from None
            except Exception as error:  # noqa: BLE001  (of what does not fit the schema, it raises what comes first)
                raise StepFailed(f"the value does not fit the Avro schema: {named(error)}") from None
            draft.payload = written.getvalue()
            draft.is_decoded = False
            return draft

        return encode_avro


def _sync_marker(draft: Draft) -> bytes:
    record = draft.record
    return struct.pack(">qii", record.offset, record.partition, 0x4176726F)


def _schema_of(schema: Any) -> _Schema:
    if schema is None:
        raise InvalidRequestError("give schema = ..., inline, or schema_file = ...")
    return _Schema(schema)


def _inlined(options: _Options, around: Surroundings) -> _Options:
    if options.schema_file is None:
        return options
    if options.schema is not None:
        raise InvalidRequestError("give one of schema and schema_file")
    try:
        text = around.read_file(options.schema_file).decode()
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{options.schema_file!r} is not UTF-8, so it is no schema") from None
    return msgspec.structs.replace(options, schema=text, schema_file=None)


def _differences(error: ValidationError) -> str:
    """What of a value does not fit: of a union there is one for each of its types."""
    return "; ".join(str(difference) for difference in error.errors)
