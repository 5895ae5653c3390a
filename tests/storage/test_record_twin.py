"""The compiled twin of the record codec does what its source does, and is not taken when it is of another source."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logbroker_storage import record_loops, record_twin
from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.record_batch import NewRecord, encode_batch, read_header
from logbroker_storage.record_layout import NO_HEADERS
from logbroker_storage.varint import encode_varint

T0 = 1_700_000_000_000
HEADER = read_header(encode_batch([NewRecord(b"", timestamp_ms=T0)]))


@pytest.fixture(scope="module")
def twin():
    try:
        return record_twin.compiled_loops()
    except ImportError as error:
        pytest.skip(f"no compiled twin was built here: {error}")


SIZES = st.one_of(st.integers(0, 130), st.sampled_from([8191, 8192, 8193, 70_000]))
BLOBS = st.one_of(st.none(), st.binary(max_size=20), SIZES.map(bytes))
HEADERS = st.lists(st.tuples(st.text(max_size=5), BLOBS), max_size=3)
TIMES = st.one_of(st.integers(T0 - 5, T0 + 5), st.integers(-(1 << 63), (1 << 63) - 1))
RECORDS = st.builds(NewRecord, value=BLOBS, key=BLOBS, headers=HEADERS, timestamp_ms=TIMES)
NEAR_RECORDS = st.builds(
    NewRecord, value=BLOBS, key=BLOBS, headers=HEADERS, timestamp_ms=st.integers(T0 - 70, T0 + 70)
)
DELTAS = st.lists(st.integers(0, (1 << 31) - 1), min_size=20, max_size=20, unique=True).map(sorted)


def outcome(call: Callable[[], object]) -> object:
    """What *call* returns, or the kind and text of its error."""
    try:
        return call()
    except (ValueError, CorruptBatchError, IndexError) as error:
        return type(error), "" if isinstance(error, IndexError) else str(error)


def encoded(loops, records, deltas):
    return outcome(lambda: loops.encode_each(records, deltas, records[0].timestamp_ms))


def decoded(loops, data, count):
    records = []
    found = outcome(lambda: loops.read_each(records, data, 0, count, HEADER, "t", 3, {}))
    return records, found


@given(records=st.lists(RECORDS, min_size=1, max_size=20), deltas=DELTAS)
@settings(max_examples=300)
def test_both_encode_records_to_the_same_bytes_or_refuse_the_same(twin, records, deltas):
    for given_deltas in (range(len(records)), deltas[: len(records)]):
        plain = encoded(record_loops, records, given_deltas)
        assert encoded(twin, records, given_deltas) == plain


ALIKE = st.builds(lambda value, count: [value] * count, BLOBS, st.integers(1, 12))
VALUES = st.one_of(st.lists(BLOBS, max_size=12), ALIKE)
FIRST_DELTAS = st.sampled_from([0, 5, 64, 8000, 8192, 70_000])  # what follows has varints of the same size


@given(values=VALUES, first=FIRST_DELTAS, timestamp_ms=st.integers(T0 - 70, T0 + 70))
@settings(max_examples=300)
def test_both_frame_values_as_they_encode_records(twin, values, first, timestamp_ms):
    records = [NewRecord(value, timestamp_ms=timestamp_ms) for value in values]
    whole, _ = (
        record_loops.encode_each(records, range(first, first + len(records)), T0) if records else ([], 0)
    )
    for loops in (record_loops, twin):
        framed = b"".join(loops.frame_each(values, first, encode_varint(timestamp_ms - T0)))
        assert framed + NO_HEADERS == NO_HEADERS + b"".join(whole)


@given(values=VALUES)
@settings(max_examples=300)
def test_both_know_the_one_length_of_values(twin, values):
    lengths = {None if value is None else len(value) for value in values}
    expected = record_loops.MIXED if None in lengths or len(lengths) != 1 else len(values[0])
    for loops in (record_loops, twin):
        assert loops.one_length(values) == expected


@given(records=st.lists(NEAR_RECORDS, min_size=1, max_size=8), data=st.data())
@settings(max_examples=500)
def test_both_decode_damaged_records_to_the_same_records_and_the_same_error(twin, records, data):
    parts, _ = record_loops.encode_each(records, range(len(records)), T0)
    content = bytearray(b"".join(parts))
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for damaged in (bytes(content), bytes(content[:cut])):
        assert decoded(twin, damaged, len(records)) == decoded(record_loops, damaged, len(records))


@given(records=st.lists(NEAR_RECORDS, min_size=1, max_size=8), data=st.data())
@settings(max_examples=300)
def test_both_skip_records_alike_sound_or_damaged(twin, records, data):
    parts, _ = record_loops.encode_each(records, range(len(records)), T0)
    content = bytearray(b"".join(parts))
    count = data.draw(st.integers(0, len(records)))
    sound = bytes(content)
    end = record_loops.read_each([], sound, 0, count, HEADER, "t", 3, {})
    assert record_loops.skip_each(sound, count) == twin.skip_each(sound, count) == end
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[at] = data.draw(st.integers(0, 255))
    found = outcome(lambda: record_loops.skip_each(bytes(content), count))
    assert outcome(lambda: twin.skip_each(bytes(content), count)) == found


@given(data=st.binary(max_size=200), count=st.integers(1, 9))
@settings(max_examples=500)
def test_both_find_the_same_in_any_bytes(twin, data, count):
    assert decoded(twin, data, count) == decoded(record_loops, data, count)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xff\xff\xff\x0f",  # a length of -2^31
        b"\xfe\xff\xff\xff\x0f" + bytes(20),  # of 2^31 - 1
        b"\xff\xff\xff\xff\x1f" + bytes(20),  # of 33 bits
        b"\x1e\x00" + b"\xff" * 9 + b"\x01" + b"\x00\x01\x01\x00",  # a timestamp delta of -2^63
        b"\x1e\x00" + b"\xfe" + b"\xff" * 8 + b"\x01" + b"\x00\x01\x01\x00",  # of 2^63 - 1
        b"\x1e\x00" + b"\xff" * 9 + b"\x03" + b"\x00\x01\x01\x00",  # of 65 bits
        b"\x14\x00\x00\xfe\xff\xff\xff\x0f\x01\x01\x00",  # an offset delta of 2^31 - 1
        b"\x16\x00\x00\x00\xfe\xff\xff\xff\x0f" + bytes(5),  # a key that is longer than all there is
        b"\x0e\x00\x00\x00\x01\x01\xff\xff\xff\xff\x0f",  # -2^31 headers
    ],
    ids=lambda content: content[:6].hex(),
)
def test_both_agree_at_the_edges_of_the_integers(twin, content):
    found = decoded(twin, content, 1)
    assert found == decoded(record_loops, content, 1)


# Surveying them ---------------------------------------------------------------------------------------------


def surveyed(loops, data, count):
    """What it finds; None also where it raises: that is for decoding to tell."""
    try:
        return loops.survey_each(data, count)
    except (CorruptBatchError, IndexError):
        return None


PLAIN_RECORDS = st.builds(NewRecord, value=BLOBS, key=BLOBS, timestamp_ms=st.integers(T0 - 70, T0 + 70))


@given(records=st.lists(PLAIN_RECORDS, min_size=1, max_size=12))
@settings(max_examples=300)
def test_both_survey_records_without_headers(twin, records):
    parts, _ = record_loops.encode_each(records, range(len(records)), T0)
    times = [record.timestamp_ms - T0 for record in records]
    expected = min(times), max(times), all(record.key is not None for record in records)
    for loops in (record_loops, twin):
        assert loops.survey_each(b"".join(parts), len(records)) == expected


@given(records=st.lists(st.one_of(PLAIN_RECORDS, NEAR_RECORDS), min_size=1, max_size=6), data=st.data())
@settings(max_examples=500)
def test_what_is_surveyed_is_what_would_have_been_decoded(twin, records, data):
    first = data.draw(st.integers(0, 2))
    parts, _ = record_loops.encode_each(records, range(first, first + len(records)), T0)
    content = bytearray(b"".join(parts))
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
        content[at] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))]) + data.draw(st.binary(max_size=2))
    found = surveyed(record_loops, damaged, len(records))
    assert surveyed(twin, damaged, len(records)) == found
    if found is None:
        return
    read, end = decoded(record_loops, damaged, len(records))
    assert end == len(damaged)
    assert [record.offset - HEADER.base_offset for record in read] == list(range(len(records)))
    assert not any(record.header_pairs for record in read)
    times = [record.timestamp_ms - HEADER.base_timestamp_ms for record in read]
    assert found == (min(times), max(times), all(record.key is not None for record in read))


@given(content=st.binary(max_size=60), count=st.integers(1, 4))
@settings(max_examples=500)
def test_both_survey_any_bytes_alike(twin, content, count):
    assert surveyed(twin, content, count) == surveyed(record_loops, content, count)


class Name(str):
    """As the members of a StrEnum are."""


def test_both_take_what_is_a_kind_of_text(twin):
    for loops in (record_loops, twin):
        parts, _ = loops.encode_each([NewRecord(b"v", b"k", [(Name("h"), b"1")], T0)], [0], T0)
        records = []
        loops.read_each(records, b"".join(parts), 0, 1, HEADER, Name("topic"), 3, {})
        assert (records[0].topic, records[0].headers) == ("topic", [("h", b"1")])


# Which is taken -------------------------------------------------------------------------------------------------


def test_a_twin_of_another_source_is_not_taken(twin, monkeypatch):
    monkeypatch.setattr(twin, "SOURCE_DIGEST", "0" * 32)
    with pytest.raises(ImportError, match=r"older than record_loops\.py; install the package again"):
        record_twin.compiled_loops()


def taken(choice: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != record_twin.CHOICE}
    if choice is not None:
        environment[record_twin.CHOICE] = choice
    program = "from logbroker_storage import record_twin; print(record_twin.IS_COMPILED)"
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )


def test_the_variable_decides_and_the_default_is_the_twin(twin):
    assert taken(None).stdout == "True\n"
    assert taken("compiled").stdout == "True\n"
    assert taken("python").stdout == "False\n"


def test_the_plain_loops_can_always_be_had():
    assert taken("python").stdout == "False\n"


def test_another_value_of_the_variable_is_refused():
    done = taken("cython")
    assert done.returncode == 1
    assert "LOGBROKER_CODEC='cython': it is 'python', 'compiled', or not set" in done.stderr
