"""Bytes of a connection to requests, and the bounds that a request is held to; without a socket."""

from __future__ import annotations

import contextlib
import datetime
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.index import load_request_schema
from kio.schema.metadata.v12.request import MetadataRequest, MetadataRequestTopic
from kio.serial import entity_reader, entity_writer

from logbroker.server.apis import VERSIONS
from logbroker.server.fetch_sessions import FetchSessions, FetchWish
from logbroker.server.frames import FrameError, FrameReader
from logbroker.server.replies import Pieces, build, encode, encode_pieces
from logbroker.server.request_bounds import BoundsError, check_bounds
from logbroker.server.requests import schema

LIMIT = 3 << 20


def framed(request: bytes) -> bytes:
    return struct.pack(">i", len(request)) + request


def reader() -> FrameReader:
    return FrameReader(lambda _: LIMIT)


@given(
    st.lists(st.binary(min_size=8, max_size=300), max_size=20),
    st.lists(st.integers(1, 400), min_size=1, max_size=50),
)
def test_requests_come_out_as_they_went_in_however_they_were_cut(requests, cuts):
    stream = memoryview(b"".join(map(framed, requests)))
    frames, found, at, turn = reader(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        found += [bytes(frame) for frame in frames.feed(stream[at : at + size])]
        at, turn = at + size, turn + 1
    assert found == requests
    assert frames.buffered_bytes == 0


def test_a_large_request_in_many_pieces_is_whole():
    request = bytes(range(256)) * (LIMIT // 256)
    frames, stream = reader(), memoryview(framed(request))
    found = [
        bytes(frame)
        for at in range(0, len(stream), 65_536)
        for frame in frames.feed(stream[at : at + 65_536])
    ]
    assert found == [request]


@pytest.mark.parametrize("length", [-(1 << 31), -1, 0, 7, LIMIT + 1, (1 << 31) - 1])
def test_an_impossible_length_is_an_error_before_anything_is_kept(length):
    frames = reader()
    with pytest.raises(FrameError):
        frames.feed(memoryview(struct.pack(">ihh", length, 3, 1)))
    assert frames.buffered_bytes <= 8


def test_a_length_alone_keeps_nothing():
    frames = reader()
    assert frames.feed(memoryview(struct.pack(">ihh", LIMIT, 3, 1))) == []
    assert frames.buffered_bytes < 100


# Bounds -----------------------------------------------------------------------------------------------------


def metadata(names: int) -> bytes:
    buffer = io.BytesIO()
    topics = tuple(MetadataRequestTopic(topic_id=None, name=f"topic-{number}") for number in range(names))
    entity_writer(MetadataRequest)(
        buffer, MetadataRequest(topics=topics, include_topic_authorized_operations=False)
    )
    return buffer.getvalue()


def check(data: bytes) -> None:
    check_bounds(MetadataRequest, memoryview(data), 0)


@pytest.mark.parametrize("names", [0, 1, 127, 128, 5000])
def test_a_sound_request_is_within_its_bounds(names):
    check(metadata(names))


def test_more_items_than_any_client_sends_are_refused():
    with pytest.raises(BoundsError, match="items"):
        check(metadata(100_001))


def test_more_tagged_fields_than_any_client_sends_are_refused():
    body = metadata(0)
    assert body.endswith(b"\0")  # so many tagged fields
    check(body[:-1] + b"\x02" + b"\x01\x00" * 2)
    with pytest.raises(BoundsError, match="items"):
        check(body[:-1] + b"\xa1\x8d\x06" + b"\x01\x00" * 100_001)


def fetch(tagged: bytes) -> bytes:
    """Of one partition, whose tagged fields are the bytes *tagged*; nothing forgotten, and no rack."""
    head = struct.pack(">iiibii", 500, 1, 1000, 0, 0, 0)
    partition = struct.pack(">iiqiqi", 0, -1, 0, -1, -1, 1000) + tagged
    return head + b"\x02" + bytes(16) + b"\x02" + partition + b"\0" + b"\x01" + b"\x01" + b"\0"


@pytest.mark.parametrize("tagged", [b"\0", b"\x01" + b"\0\x10" + bytes(16), b"\x01" + b"\x63\x03abc"])
def test_tagged_fields_are_within_their_bounds(tagged):
    check_bounds(load_request_schema(1, 17), memoryview(fetch(tagged)), 0)


@pytest.mark.parametrize("behind", [b"", b"\0\xff\xff\xff\xff\x0f"])
def test_a_tagged_field_that_is_not_as_long_as_it_says_is_refused(behind):
    """kio does not look at the length: it would find the count of another array in the bytes behind."""
    size = 16 + len(behind) if behind else 15
    with pytest.raises(BoundsError, match="as long as it says"):
        check_bounds(
            load_request_schema(1, 17),
            memoryview(fetch(b"\x01" + b"\0" + bytes([size]) + bytes(16) + behind)),
            0,
        )


def test_a_tagged_field_that_is_there_twice_is_refused():
    directory_id = b"\0\x10" + bytes(16)
    with pytest.raises(BoundsError, match="twice"):
        check_bounds(load_request_schema(1, 17), memoryview(fetch(b"\x02" + 2 * directory_id)), 0)


@pytest.mark.parametrize(
    "later", [b"\x63\x03abc", b"\x63\0", 200 * b"\x63\x03abc", b"\x80\x01\x80\x01" + bytes(128)]
)
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("known", [0, 1])
def test_tagged_fields_of_later_releases_are_passed_over(later, before, known):
    """At any depth, beside those that are known, and kio never sees them."""
    message = load_request_schema(1, 17)
    directory_id = b"\0\x10" + bytes(range(16))
    fields = [directory_id] * known
    plain = fetch(bytes([known]) + b"".join(fields))
    count = 200 if len(later) == 1000 else 1
    number = count + known
    fields.insert(before, later)
    tags = (bytes([number]) if number < 128 else bytes([number & 0x7F | 0x80, 1])) + b"".join(fields)
    full = fetch(tags)[:-1] + b"\x01\x7f\x02xy"  # and in the message itself
    readable = check_bounds(message, memoryview(b"head" + full), 4)
    assert bytes(readable) == b"head" + plain
    assert entity_reader(message)(readable, 4) == entity_reader(message)(memoryview(b"head" + plain), 4)


@pytest.mark.parametrize("mark", range(256))
def test_a_struct_is_there_unless_its_mark_is_null(mark):
    data = memoryview(b"\x01" + struct.pack(">ib", 5, mark - 128) + b"\0")
    cursor_is_cut_short = mark - 128 != -1
    with pytest.raises(BoundsError) if cursor_is_cut_short else contextlib.nullcontext():
        check_bounds(load_request_schema(75, 0), data, 0)


@given(st.integers(0, 400))
def test_a_request_cut_short_is_out_of_bounds(size):
    data = metadata(10)
    if size < len(data):
        with pytest.raises(BoundsError):
            check(data[:size])


@given(
    st.binary(max_size=60),
    st.sampled_from([(key, version) for key, all_ in VERSIONS.items() for version in all_]),
)
def test_whatever_the_bytes_are_the_check_ends_and_says_so_in_one_way(data, api):
    try:
        check_bounds(load_request_schema(*api), memoryview(data), 0)
    except BoundsError:
        pass


# Replies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS[3])
def test_a_version_takes_the_values_that_it_knows(version):
    values = {
        "brokers": [{"node_id": 0, "host": "h", "port": 1, "rack": None}],
        "cluster_id": "c",
        "controller_id": 0,
        "topics": [{"name": "t", "topic_id": None, "is_internal": True, "partitions": []}],
    }
    message = build(schema(3, version).response, values)
    assert message.topics[0].name == "t"
    assert encode(message)
    assert getattr(message, "throttle_time", datetime.timedelta(0)) == datetime.timedelta(0)


def test_pieces_go_out_as_they_are():
    large = memoryview(b"x" * 1000)
    partition = {
        "partition_index": 0,
        "high_watermark": 1,
        "aborted_transactions": None,
        "records": Pieces([large, b"y"]),
    }
    message = build(schema(1, 12).response, {"responses": [{"topic": "t", "partitions": [partition]}]})
    pieces = encode_pieces(b"head", message)
    assert any(piece is large for piece in pieces)
    whole = b"".join(pieces)
    assert whole.startswith(b"head")
    assert b"x" * 1000 + b"y" in whole


# Fetch sessions ---------------------------------------------------------------------------------------------


def test_the_oldest_session_makes_place():
    sessions = FetchSessions(most=2)
    wish = FetchWish("t", 0, 0, 100)
    made = [sessions.session_of(0, 0, [wish], [], named_by_id=False) for _ in range(3)]
    assert len(sessions) == 2
    assert all(session is not None for session in made)
    assert len({session.session_id for session in made if session is not None}) == 3
