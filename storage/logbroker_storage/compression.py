"""The five codecs of a record batch: bytes in, bytes out, never more than the caller allows.

    code  name    what is on the disk
       0  none    the records themselves
       1  gzip    one gzip member (RFC 1952); several are read
       2  snappy  xerial framing, as Kafka's Java client writes it; bare snappy, as librdkafka's, is read
       3  lz4     an LZ4 frame of independent blocks (Kafka refuses linked ones), content size declared
       4  zstd    one zstd frame, content size declared when we write it (a Java client's does not)

The xerial framing of snappy:

    at  size  field    meaning
     0     8  magic    82 53 4e 41 50 50 59 00
     8     4  version  int32 1; ignored, since some writers swap its bytes
    12     4  compat   int32 1; ignored likewise
    16        blocks   int32 size, then that many bytes of bare snappy (32 KiB of data each)

Invariants: a size that the data declares is believed only after it was compared with *max_bytes*; what
declares no size is decompressed step by step, at most one step too far. Foreign errors do not escape.

Threads: zstd contexts are costly to make (a compressor takes 30 µs and 1 MiB or more) and not thread-safe,
so each thread keeps its own.
"""

from __future__ import annotations

import enum
import struct
import threading
import zlib
from collections.abc import Callable
from typing import TypeAlias

import cramjam
import lz4.frame
import zstandard

from .errors import BatchDefect, CorruptBatchError

Buffer: TypeAlias = "bytes | bytearray | memoryview"

GZIP_WBITS = 31  # zlib's way to ask for the gzip wrapper
GZIP_DEFAULT_LEVEL = 6
LZ4_DEFAULT_LEVEL = 0
ZSTD_DEFAULT_LEVEL = 3

XERIAL_MAGIC = b"\x82SNAPPY\x00"
XERIAL_HEADER = struct.Struct(">8sii")
XERIAL_BLOCK_SIZE = struct.Struct(">i")
XERIAL_BLOCK_BYTES = 32 * 1024

# A zstd block of 4 bytes (run-length) yields at most 128 KiB: 32 KiB for each byte of input.
ZSTD_MAX_YIELD = 32 * 1024
ZSTD_MIN_STEP_BYTES = 256
STEP_BYTES = 256 * 1024  # output of one step where the size is unknown


class Compression(enum.IntEnum):
    """How the records of a batch are compressed: the low three bits of its attributes."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4

    @classmethod
    def from_name(cls, name: str | None) -> Compression:
        """The codec of a configuration name; None means none. ``ValueError`` for any other name."""
        try:
            return cls.NONE if name is None else cls[name.upper()]
        except KeyError:
            raise ValueError(f"unknown compression {name!r}: use none, gzip, snappy, lz4 or zstd") from None


class DecompressedTooLargeError(CorruptBatchError):
    """The data would decompress to more than *max_bytes*; nothing of it is returned."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        super().__init__(BatchDefect.TOO_LARGE, detail=f"more than {max_bytes} bytes")


def compress(codec: Compression, data: Buffer, level: int | None = None) -> bytes:
    """*data* in the form that Kafka's clients read; *level* means what the codec makes of it."""
    if codec is Compression.NONE:
        return bytes(data)
    return _COMPRESSORS[codec](data, level)


def decompress(codec: Compression, data: Buffer, max_bytes: int) -> bytes:
    """What was compressed, at most *max_bytes* of it.

    Raises ``DecompressedTooLargeError`` for more, and ``CorruptBatchError`` for data that is damaged, cut
    short or followed by anything else.
    """
    if codec is Compression.NONE:
        if len(data) > max_bytes:
            raise DecompressedTooLargeError(max_bytes)
        return bytes(data)
    return _DECOMPRESSORS[codec](data, max_bytes)


def _corrupt(codec: str, reason: object) -> CorruptBatchError:
    return CorruptBatchError(BatchDefect.BAD_RECORDS, detail=f"{codec}: {reason}")


# gzip


def _gzip(data: Buffer, level: int | None) -> bytes:
    return zlib.compress(data, GZIP_DEFAULT_LEVEL if level is None else level, wbits=GZIP_WBITS)


def _ungzip(data: Buffer, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    room = max_bytes
    rest = bytes(data)
    while rest or not pieces:
        stream = zlib.decompressobj(GZIP_WBITS)
        try:
            piece = stream.decompress(rest, room + 1)  # one byte more tells "exactly full" from "too large"
        except zlib.error as error:
            raise _corrupt("gzip", error) from error
        room -= len(piece)
        if room < 0:
            raise DecompressedTooLargeError(max_bytes)
        if not stream.eof:
            raise _corrupt("gzip", "the stream is cut short")
        pieces.append(piece)
        rest = stream.unused_data
    return b"".join(pieces)


# snappy


def _snappy(data: Buffer, _level: int | None) -> bytes:
    view = memoryview(data)
    pieces = [XERIAL_HEADER.pack(XERIAL_MAGIC, 1, 1)]
    for start in range(0, len(view), XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(view[start : start + XERIAL_BLOCK_BYTES]))
        pieces += (XERIAL_BLOCK_SIZE.pack(len(block)), block)
    return b"".join(pieces)


def _unsnappy(data: Buffer, max_bytes: int) -> bytes:
    view = memoryview(data)
    if view[: len(XERIAL_MAGIC)] != XERIAL_MAGIC:
        return _unsnappy_block(view, max_bytes, max_bytes)
    if len(view) < XERIAL_HEADER.size:
        raise _corrupt("snappy", "the xerial header is cut short")
    pieces: list[bytes] = []
    room = max_bytes
    position = XERIAL_HEADER.size
    while position < len(view):
        end = _xerial_block_end(view, position)
        piece = _unsnappy_block(view[position + XERIAL_BLOCK_SIZE.size : end], room, max_bytes)
        room -= len(piece)
        pieces.append(piece)
        position = end
    return b"".join(pieces)


def _xerial_block_end(view: memoryview, position: int) -> int:
    if position + XERIAL_BLOCK_SIZE.size > len(view):
        raise _corrupt("snappy", "a xerial block size is cut short")
    (size,) = XERIAL_BLOCK_SIZE.unpack_from(view, position)
    end = position + XERIAL_BLOCK_SIZE.size + int(size)
    if size <= 0 or end > len(view):
        raise _corrupt("snappy", f"a xerial block of {size} bytes does not fit")
    return end


def _unsnappy_block(block: memoryview, room: int, max_bytes: int) -> bytes:
    try:
        if cramjam.snappy.decompress_raw_len(block) > room:
            raise DecompressedTooLargeError(max_bytes)
        return bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        raise _corrupt("snappy", error) from error


# lz4


def _lz4(data: Buffer, level: int | None) -> bytes:
    compressed: bytes = lz4.frame.compress(
        data,
        compression_level=LZ4_DEFAULT_LEVEL if level is None else level,
        block_size=lz4.frame.BLOCKSIZE_MAX256KB,
        block_linked=False,
        store_size=True,
    )
    return compressed


def _unlz4(data: Buffer, max_bytes: int) -> bytes:
    frame = bytes(data)
    try:
        declared = lz4.frame.get_frame_info(frame)["content_size"]  # 0: not declared
        if declared > max_bytes:
            raise DecompressedTooLargeError(max_bytes)
        return _unlz4_frame(frame, declared + 1 if declared else STEP_BYTES, max_bytes)
    except RuntimeError as error:  # the only error that lz4.frame knows
        raise _corrupt("lz4", error) from error


def _unlz4_frame(frame: bytes, step_bytes: int, max_bytes: int) -> bytes:
    stream = lz4.frame.LZ4FrameDecompressor()
    pieces: list[bytes] = [stream.decompress(frame, step_bytes)]
    size_bytes = len(pieces[0])
    while not stream.eof and pieces[-1] and size_bytes <= max_bytes:
        # Steps double, because each one copies the input that is left.
        pieces.append(stream.decompress(b"", min(size_bytes, max_bytes - size_bytes + 1)))
        size_bytes += len(pieces[-1])
    if size_bytes > max_bytes:
        raise DecompressedTooLargeError(max_bytes)
    if not stream.eof or stream.unused_data:
        raise _corrupt(
            "lz4", "the frame is cut short" if not stream.eof else "there is data behind the frame"
        )
    return b"".join(pieces)


# zstd


class _ZstdContexts(threading.local):
    """The calling thread's contexts. Guard: none needed, no other thread sees them."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_zstd_contexts = _ZstdContexts()


def _zstd(data: Buffer, level: int | None) -> bytes:
    wanted = ZSTD_DEFAULT_LEVEL if level is None else level
    compressor = _zstd_contexts.compressors.get(wanted)
    if compressor is None:
        compressor = _zstd_contexts.compressors[wanted] = zstandard.ZstdCompressor(level=wanted)
    return compressor.compress(data)


def _unzstd(data: Buffer, max_bytes: int) -> bytes:
    try:
        declared = zstandard.frame_content_size(data)  # -1: not declared
        if declared > max_bytes:
            raise DecompressedTooLargeError(max_bytes)
        if declared > 0:
            return _zstd_contexts.decompressor.decompress(data, allow_extra_data=False)
        return _unzstd_stream(memoryview(data), max_bytes)
    except zstandard.ZstdError as error:
        raise _corrupt("zstd", error) from error


def _unzstd_stream(view: memoryview, max_bytes: int) -> bytes:
    # decompressobj() has no cap on its output, so the input is doled out: no step can yield more than the
    # room that is left (or 8 MiB). stream_reader() has one, but takes a frame cut short for a whole one.
    stream = _zstd_contexts.decompressor.decompressobj()
    pieces: list[bytes] = []
    room = max_bytes
    position = 0
    while position < len(view) and not stream.eof:
        step = max(room // ZSTD_MAX_YIELD, ZSTD_MIN_STEP_BYTES)
        piece = stream.decompress(view[position : position + step])
        position += step
        room -= len(piece)
        if room < 0:
            raise DecompressedTooLargeError(max_bytes)
        pieces.append(piece)
    if not stream.eof or stream.unused_data or position < len(view):
        raise _corrupt(
            "zstd", "the frame is cut short" if not stream.eof else "there is data behind the frame"
        )
    return b"".join(pieces)


_COMPRESSORS: dict[Compression, Callable[[Buffer, int | None], bytes]] = {
    Compression.GZIP: _gzip,
    Compression.SNAPPY: _snappy,
    Compression.LZ4: _lz4,
    Compression.ZSTD: _zstd,
}
_DECOMPRESSORS: dict[Compression, Callable[[Buffer, int], bytes]] = {
    Compression.GZIP: _ungzip,
    Compression.SNAPPY: _unsnappy,
    Compression.LZ4: _unlz4,
    Compression.ZSTD: _unzstd,
}
