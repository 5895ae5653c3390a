"""A request as handlers see it, and how its bytes become one.

kio has a class for each version of each message. Bytes behind the message are ignored: some clients send them
(librdkafka with Metadata 13), and a later minor revision of a message may add tagged fields.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from kio.index import load_request_schema, load_response_schema
from kio.serial import entity_reader
from kio.static.primitive import i32

from .connections import OpenConnection
from .frames import API_VERSION, FrameError
from .replies import Buffer, Values, build, encode, encode_pieces
from .request_bounds import check_bounds

CORRELATION_ID = struct.Struct(">i")


class Schema(NamedTuple):
    """The classes and readers of one version of an API."""

    request: type[Any]
    read_header: Any
    read_body: Any
    response: type[Any]
    response_header_end: bytes
    """What follows the correlation id in a response's header: the same each time."""

    def response_header(self, correlation_id: int) -> bytes:
        return CORRELATION_ID.pack(correlation_id) + self.response_header_end


@cache
def schema(api_key: int, version: int) -> Schema:
    request, response = load_request_schema(api_key, version), load_response_schema(api_key, version)
    return Schema(
        request=request,
        read_header=entity_reader(request.__header_schema__),
        read_body=entity_reader(request),
        response=response,
        response_header_end=encode(response.__header_schema__(correlation_id=i32(0)))[CORRELATION_ID.size :],
    )


class Request(NamedTuple):
    """One request of a connection. ``body`` is the kio message of its version."""

    api_key: int
    version: int
    correlation_id: int
    client_id: str
    body: Any
    size_bytes: int
    connection: OpenConnection

    def reply(self, values: Values) -> bytes:
        """The response of the request's version with these *values* (see ``replies``), ready to be sent."""
        return response_header(self) + self.body_of_reply(values)

    def body_of_reply(self, values: Values) -> bytes:
        """As ``reply``, without the header, in which alone answers to equal requests differ."""
        return body_of_reply(self.api_key, self.version, values)

    def reply_in_pieces(self, values: Values) -> list[Buffer]:
        """As ``reply``, where *values* hold ``Pieces``."""
        message = build(schema(self.api_key, self.version).response, values)
        return encode_pieces(response_header(self), message)


def body_of_reply(api_key: int, version: int, values: Values) -> bytes:
    return encode(build(schema(api_key, version).response, values))


def response_header(request: Request) -> bytes:
    return schema(request.api_key, request.version).response_header(request.correlation_id)


def parse(frame: bytes | bytearray, versions: Mapping[int, range], connection: OpenConnection) -> Request:
    """The request in *frame*; *versions* are those that are served.

    Raises:
        UnsupportedVersionError: the version is not one of them.
        FrameError: the bytes are not such a request.
    """
    api_key, version = API_VERSION.unpack_from(frame)
    if api_key not in versions:
        raise FrameError(f"API {api_key} is not served")
    if version not in versions[api_key]:
        raise UnsupportedVersionError(api_key, version, correlation_id_of(frame))
    layout = schema(api_key, version)
    readable = memoryview(frame).toreadonly()  # kio takes nothing else
    try:
        known = check_bounds(layout.request.__header_schema__, readable, 0)
        header, header_bytes = layout.read_header(known, 0)
        body, _ = layout.read_body(check_bounds(layout.request, known, header_bytes), header_bytes)
    except Exception as error:  # whatever a parser makes of bytes that a stranger has chosen
        raise FrameError(
            f"API {api_key} version {version} does not parse: {type(error).__name__}: {error}"
        ) from error
    return Request(
        api_key=api_key,
        version=version,
        correlation_id=header.correlation_id,
        client_id=header.client_id or "",
        body=body,
        size_bytes=len(frame),
        connection=connection,
    )


def correlation_id_of(frame: bytes | bytearray) -> int:
    (correlation_id,) = CORRELATION_ID.unpack_from(frame, API_VERSION.size)
    return int(correlation_id)


class UnsupportedVersionError(FrameError):
    """A version of an API that is not served."""

    def __init__(self, api_key: int, version: int, correlation_id: int) -> None:
        self.api_key = api_key
        self.version = version
        self.correlation_id = correlation_id
        super().__init__(f"version {version} of API {api_key} is not served")
