"""What the codec costs a record: ``python tests/storage/test_record_batch_speed.py`` prints the table.

As a test it only checks that the cases are what they say, because a time limit would fail on a busy machine.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from logbroker_storage.record_batch import (
    Compression,
    NewRecord,
    decode_records,
    encode_batch,
    encode_values,
    read_batch,
)

T0 = 1_700_000_000_000
generator = random.Random(8)
EQUAL = [generator.randbytes(100) for _ in range(600)]
MIXED = [generator.randbytes(generator.randint(80, 120)) for _ in range(600)]
JSON = [b'{"id": %06d, "state": "created", "note": "%s"}' % (index, b"text " * 11) for index in range(600)]
ALIKE = [
    NewRecord(value, b"key%05d" % index, [("type", b"created"), ("n", b"1")], T0)
    for index, value in enumerate(EQUAL)
]
UNLIKE = [
    NewRecord(
        value,
        b"key%d" % (index * 37 % 1000),
        [("type", generator.choice([b"new", b"done"]))],
        T0 + index // 100,
    )
    for index, value in enumerate(MIXED)
]

CASES: dict[str, Callable[[], bytearray]] = {
    "600 values of 100 bytes": lambda: encode_values(EQUAL, [(0, T0)]),
    "600 values of 100 bytes, 5 timestamps": lambda: encode_values(EQUAL, [(n * 120, n) for n in range(5)]),
    "600 values of 80 to 120 bytes": lambda: encode_values(MIXED, [(0, T0)]),
    "10,000 values of 100 bytes": lambda: encode_values([EQUAL[0]] * 10_000, [(0, T0)]),
    "60 values of 1 KiB": lambda: encode_values([bytes(1024)] * 60, [(0, T0)]),
    "one value of 100 bytes": lambda: encode_values(EQUAL[:1], [(0, T0)]),
    "600 records alike, keys, 2 headers": lambda: encode_batch(ALIKE),
    "600 records of all sizes, keys, 1 header": lambda: encode_batch(UNLIKE),
} | {
    f"600 JSON values of 100 bytes, {codec.name.lower()}": lambda codec=codec: encode_values(
        JSON, [(0, T0)], compression=codec
    )
    for codec in Compression
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_case_comes_back_whole(case):
    batch = read_batch(CASES[case]())
    assert len(decode_records(batch)) == batch.header.record_count


def best_ns(call: Callable[[], object], *, seconds: float = 0.4) -> float:
    """The shortest run of many: what the code costs when nothing else has the processor."""
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e9


def main() -> None:
    for case, encode in CASES.items():
        batch = read_batch(encode())
        count = batch.header.record_count
        encode_ns = best_ns(encode) / count
        decode_ns = best_ns(lambda batch=batch: decode_records(batch, "topic", 0)) / count
        print(f"{case:42} encode {encode_ns:6.0f} ns  decode {decode_ns:6.0f} ns a record")


if __name__ == "__main__":
    main()
