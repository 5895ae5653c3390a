"""The codecs: what comes back, how much of it at most, and that only CorruptBatchError escapes."""

from __future__ import annotations

import gzip
import random
import struct
import threading

import cramjam
import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from logbroker_storage.compression import (
    XERIAL_MAGIC,
    Compression,
    DecompressedTooLargeError,
    compress,
    decompress,
)
from logbroker_storage.errors import BatchDefect, CorruptBatchError
from tests.storage.memory import peak_bytes

CODECS = [codec for codec in Compression if codec is not Compression.NONE]
MIB = 1 << 20

every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def test_codecs_are_found_by_their_configuration_names():
    assert Compression.from_name(None) is Compression.NONE
    assert [Compression.from_name(name) for name in ("none", "gzip", "snappy", "lz4", "zstd")] == list(
        Compression
    )
    with pytest.raises(ValueError, match="none, gzip, snappy, lz4 or zstd"):
        Compression.from_name("brotli")


@pytest.mark.parametrize("codec", list(Compression), ids=lambda codec: codec.name)
@given(data=st.binary(max_size=2000), repeat=st.integers(1, 50))
@settings(max_examples=50)
def test_what_was_compressed_comes_back(codec, data, repeat):
    whole = data * repeat
    assert decompress(codec, compress(codec, memoryview(whole)), len(whole)) == whole


@every_codec
@pytest.mark.parametrize("kind", ["zeros", "random"])
def test_data_of_many_blocks_comes_back_but_only_if_it_is_allowed(codec, kind):
    data = bytes(3 * MIB + 1) if kind == "zeros" else random.Random(1).randbytes(3 * MIB + 1)
    compressed = compress(codec, data)
    assert decompress(codec, compressed, len(data)) == data
    with pytest.raises(DecompressedTooLargeError) as caught:
        decompress(codec, compressed, len(data) - 1)
    assert caught.value.defect is BatchDefect.TOO_LARGE
    assert caught.value.max_bytes == len(data) - 1


def test_uncompressed_data_is_held_to_the_same_limit():
    with pytest.raises(DecompressedTooLargeError):
        decompress(Compression.NONE, b"abc", 2)


@pytest.mark.parametrize(
    ("codec", "level"),
    [
        (Compression.GZIP, 1),
        (Compression.GZIP, 9),
        (Compression.LZ4, 9),
        (Compression.ZSTD, -5),
        (Compression.ZSTD, 19),
    ],
)
def test_a_level_may_be_asked_for(codec, level):
    data = b"level " * 1000
    assert decompress(codec, compress(codec, data, level), len(data)) == data


# What other writers make of it


def xerial(*blocks: bytes, version: bytes = struct.pack(">ii", 1, 1)) -> bytes:
    return XERIAL_MAGIC + version + b"".join(struct.pack(">i", len(block)) + block for block in blocks)


def bare_snappy(data: bytes) -> bytes:
    return bytes(cramjam.snappy.compress_raw(data))


def zstd_without_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def lz4_without_size(data: bytes) -> bytes:
    return lz4.frame.compress(data, store_size=False, block_linked=False)


FOREIGN = {
    "gzip of two members": (
        Compression.GZIP,
        lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    ),
    "bare snappy, as librdkafka writes it": (Compression.SNAPPY, bare_snappy),
    "xerial snappy of two blocks": (
        Compression.SNAPPY,
        lambda data: xerial(bare_snappy(data[:100]), bare_snappy(data[100:])),
    ),
    "xerial snappy with its version bytes swapped": (
        Compression.SNAPPY,
        lambda data: xerial(bare_snappy(data), version=struct.pack("<ii", 1, 1)),
    ),
    "lz4 without content size": (Compression.LZ4, lz4_without_size),
    "lz4 with linked blocks and checksums": (
        Compression.LZ4,
        lambda data: lz4.frame.compress(data, content_checksum=True, block_checksum=True),
    ),
    "zstd without content size, as Java writes it": (Compression.ZSTD, zstd_without_size),
}


@pytest.mark.parametrize("writer", FOREIGN)
@pytest.mark.parametrize(
    "data", [b"small", b"foreign " * 100_000, random.Random(2).randbytes(700_000)], ids=len
)
def test_data_of_other_writers_is_read_within_the_same_limit(writer, data):
    codec, write = FOREIGN[writer]
    compressed = write(data)
    assert decompress(codec, compressed, len(data)) == data
    with pytest.raises(DecompressedTooLargeError):
        decompress(codec, compressed, len(data) - 1)


# Damage


@every_codec
def test_data_cut_short_anywhere_is_corrupt(codec):
    compressed = compress(codec, b"cut " * 20_000 + random.Random(3).randbytes(2000))
    for size in [*range(40), *range(40, len(compressed), 97), len(compressed) - 1]:
        try:
            decompress(codec, compressed[:size], MIB)
        except CorruptBatchError:
            continue
        # Xerial framing has no end mark: what stops between two blocks is whole, as far as it can tell.
        assert codec is Compression.SNAPPY
        assert size == 16 or size in xerial_block_ends(compressed)


def xerial_block_ends(compressed: bytes) -> list[int]:
    ends = [16]
    while ends[-1] < len(compressed):
        ends.append(ends[-1] + 4 + struct.unpack_from(">i", compressed, ends[-1])[0])
    return ends


@pytest.mark.parametrize(
    "writer", ["lz4 without content size", "zstd without content size, as Java writes it"]
)
def test_data_of_other_writers_cut_short_is_corrupt(writer):
    codec, write = FOREIGN[writer]
    compressed = write(random.Random(4).randbytes(300_000))
    for size in (1, 5, 10, 1000, 150_000, len(compressed) - 1):
        with pytest.raises(CorruptBatchError):
            decompress(codec, compressed[:size], MIB)


@every_codec
def test_data_followed_by_anything_is_corrupt(codec):
    with pytest.raises(CorruptBatchError):
        decompress(codec, compress(codec, b"data" * 100) + b"\x01", MIB)


@every_codec
@given(data=st.binary(max_size=200))
@settings(max_examples=200)
def test_no_bytes_at_all_make_anything_but_a_corrupt_batch_escape(codec, data):
    try:
        assert len(decompress(codec, data, 10_000)) <= 10_000
    except CorruptBatchError:
        pass


@every_codec
def test_flipped_bits_never_make_anything_but_a_corrupt_batch_escape(codec):
    compressed = compress(codec, b"flipped " * 40 + random.Random(5).randbytes(60))
    for position in range(len(compressed)):
        for bit in range(8):
            damaged = bytearray(compressed)
            damaged[position] ^= 1 << bit
            try:
                assert len(decompress(codec, bytes(damaged), 4096)) <= 4096
            except CorruptBatchError:
                pass


# Bombs

GIB = 1 << 30


def zstd_bomb_without_size() -> bytes:
    compressor = zstandard.ZstdCompressor(level=19, write_content_size=False).compressobj()
    return b"".join(compressor.compress(bytes(MIB)) for _ in range(128)) + compressor.flush()


def lz4_frame_declaring(size: int) -> bytes:
    frame = bytearray(lz4.frame.compress(b"tiny", store_size=True))
    struct.pack_into("<Q", frame, 6, size)
    return bytes(frame)


BOMBS = {
    "gzip of 128 MiB of zeros": (Compression.GZIP, lambda: gzip.compress(bytes(128 * MIB), 9)),
    "gzip of many members": (Compression.GZIP, lambda: gzip.compress(bytes(MIB)) * 128),
    "zstd that declares 128 MiB": (Compression.ZSTD, lambda: zstandard.compress(bytes(128 * MIB))),
    "zstd that declares 2**62 bytes": (
        Compression.ZSTD,
        lambda: b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 62) + b"\x01\x00\x00",
    ),
    "zstd of 128 MiB that declares nothing": (Compression.ZSTD, zstd_bomb_without_size),
    "lz4 that declares 128 MiB": (Compression.LZ4, lambda: lz4.frame.compress(bytes(128 * MIB))),
    "lz4 of 128 MiB that declares nothing": (Compression.LZ4, lambda: lz4_without_size(bytes(128 * MIB))),
    "snappy that declares 4 GiB": (Compression.SNAPPY, lambda: b"\xff\xff\xff\xff\x0f\x00a"),
    "snappy of 128 MiB": (Compression.SNAPPY, lambda: bare_snappy(bytes(128 * MIB))),
    "xerial snappy with a block that declares 4 GiB": (
        Compression.SNAPPY,
        lambda: xerial(bare_snappy(b"small"), b"\xff\xff\xff\xff\x0f\x00a"),
    ),
    "xerial snappy of many blocks": (Compression.SNAPPY, lambda: xerial(*[bare_snappy(bytes(MIB))] * 128)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_without_the_memory_it_asks_for(bomb):
    codec, build = BOMBS[bomb]
    compressed = build()

    def refused() -> None:
        with pytest.raises(DecompressedTooLargeError):
            decompress(codec, compressed, 4 * MIB)

    assert peak_bytes(refused) < 32 * MIB


def test_an_lz4_frame_whose_header_lies_about_its_size_is_corrupt():
    with pytest.raises(CorruptBatchError):
        decompress(Compression.LZ4, lz4_frame_declaring(GIB), MIB)


@pytest.mark.parametrize("size", [-1, 0, 1 << 30], ids=["negative", "zero", "huge"])
def test_a_xerial_block_size_that_cannot_be_is_corrupt(size):
    with pytest.raises(CorruptBatchError):
        decompress(Compression.SNAPPY, XERIAL_MAGIC + struct.pack(">iii", 1, 1, size) + b"abc", MIB)


# Threads


@every_codec
def test_threads_may_compress_and_decompress_at_once(codec):
    failures: list[object] = []

    def work(seed: int) -> None:
        data = random.Random(seed).randbytes(500) * 40
        failures.extend(
            seed for _ in range(30) if decompress(codec, compress(codec, data), len(data)) != data
        )

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
