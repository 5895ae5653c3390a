"""Bytes of a connection to whole requests. Pure: it is given buffers that were filled and asked for the next.

A request is an int32 length and so many bytes, of which the first four are the API key and its version
(int16 each). The length is checked before a byte of the request is kept, against the bound of its API:

    length                                          outcome
    below the shortest request, or negative         FrameError
    above the API's bound                           FrameError
    anything else                                   a request, once all of it has come

What is kept grows with what has come, in pieces, so a length alone takes no memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

LENGTH = struct.Struct(">i")
API_VERSION = struct.Struct(">hh")
HEAD_BYTES = LENGTH.size + API_VERSION.size
SHORTEST_REQUEST_BYTES = 8  # API key, version, correlation id
PIECE_BYTES = 1 << 20

LimitOf = Callable[[int], int]  # API key -> the longest request of it


class FrameError(Exception):
    """The peer does not speak the protocol, or asks for more than is allowed: the connection is to be closed."""


class FrameReader:
    """Cuts one connection's bytes into requests."""

    def __init__(self, limit_of: LimitOf) -> None:
        """*limit_of* gives the longest request of an API key, in bytes."""
        self._limit_of = limit_of
        self._head = bytearray()  # of a request whose length and API are not known yet
        self._pieces: list[bytearray] = []  # of the request that is coming in
        self._missing = 0  # bytes of it that have not come

    @property
    def buffered_bytes(self) -> int:
        return len(self._head) + sum(map(len, self._pieces))

    def feed(self, data: memoryview) -> list[bytes | bytearray]:
        """Take in *data*; the requests that are whole now, without their lengths.

        Raises:
            FrameError: what came is no request; nothing more can be read.
        """
        requests: list[bytes | bytearray] = []
        position, size = 0, len(data)
        while position < size:
            if not self._missing:
                taken = min(HEAD_BYTES - len(self._head), size - position)
                self._head += data[position : position + taken]
                position += taken
                if len(self._head) < HEAD_BYTES:
                    break
                self._begin()
            taken = min(self._missing, size - position)
            self._keep(data[position : position + taken])
            position += taken
            if not self._missing:
                requests.append(self._whole())
        return requests

    def _begin(self) -> None:
        (length,) = LENGTH.unpack_from(self._head)
        api_key, _ = API_VERSION.unpack_from(self._head, LENGTH.size)
        if length < SHORTEST_REQUEST_BYTES:
            raise FrameError(f"a request of {length} bytes")
        limit = self._limit_of(api_key)
        if length > limit:
            raise FrameError(f"a request of {length} bytes for API {api_key}, of which {limit} are allowed")
        self._pieces = [self._head[LENGTH.size :]]
        self._missing = length - API_VERSION.size
        self._head = bytearray()

    def _keep(self, data: memoryview) -> None:
        self._missing -= len(data)
        if len(self._pieces[-1]) + len(data) > PIECE_BYTES:
            self._pieces.append(bytearray())  # extending a large one would copy it again and again
        self._pieces[-1] += data

    def _whole(self) -> bytes | bytearray:
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
