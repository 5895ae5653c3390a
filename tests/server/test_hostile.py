"""Peers that do not speak the protocol, or mean harm: each costs itself its connection, and nobody else anything."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import typing
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from kio.index import load_request_schema
from kio.schema.errors import ErrorCode

import logbroker
from logbroker.server.apis import APIS, VERSIONS
from logbroker.server.share_acknowledgements import MAX_RANGES
from logbroker.server.share_sessions import MAX_SESSIONS as MAX_SHARE_SESSIONS
from logbroker_storage.clock import SYSTEM_CLOCK
from logbroker_storage.files import OsFiles
from logbroker_storage.record_batch import HEADER_BYTES, Compression

from ..proof.faults.server_thread import ServerThread
from .raw_client import (
    API_VERSIONS,
    FETCH,
    METADATA,
    PRODUCE,
    RawClient,
    batch,
    changed,
    encode,
    framed,
    message,
    records_of,
    request_bytes,
    resealed,
    response_of,
)
from .raw_sharer import ACCEPT, FINAL, RECORD_LIMIT, REJECT, RELEASE, RawSharer
from .server_process import ServerProcess

OK = ErrorCode.none
KIB, MIB = 1 << 10, 1 << 20
MAX_PRODUCE_BYTES, MAX_OTHER_BYTES = 64 * MIB, 4 * MIB
HANG_S = 30.0  # so long only what never comes is waited for, on any machine
HOLDING_UP_S = 3.0  # of the server's own processor time, however little of it others leave
FRAMES = 3000
HUGE = 2**31 - 1


@pytest.fixture(scope="module")
def shared(shared: ServerProcess) -> ServerProcess:
    """With a topic to look at. ``client`` is the connection that does harm."""
    with RawClient(shared.port) as client:
        client.create("canary")
        assert client.produce("canary", batch(b"alive")).error_code is OK
    return shared


@pytest.fixture
def witness(shared: ServerProcess) -> Iterator[RawClient]:
    """A connection opened before, which has to go on working; nothing must be appended meanwhile."""
    with RawClient(shared.port) as witness:
        pid, before = shared.pid, witness.end_offset("canary")
        yield witness
        assert witness.is_alive()
        assert witness.end_offset("canary") == before
        assert shared.pid == pid


def rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def virtual_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def share_of_a_processor(pid: int) -> float:
    """What a process uses of one, over two seconds."""
    used, began = cpu_s(pid), time.monotonic()
    time.sleep(2)
    return (cpu_s(pid) - used) / (time.monotonic() - began)


@contextlib.contextmanager
def without_much_work(server: ServerProcess) -> Iterator[None]:
    """What is asked meanwhile is answered before the server has worked for so long that it held others up."""
    before = cpu_s(server.pid)
    yield
    assert cpu_s(server.pid) - before < HOLDING_UP_S


@contextlib.contextmanager
def logged(server: ServerProcess, *words: str) -> Iterator[None]:
    """A line with these words is logged by the end of it."""
    before = len(server.log())
    yield
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        lines = server.log()[before:].splitlines()
        if any(all(word in line for word in words) for line in lines):
            return
        time.sleep(0.01)
    raise AssertionError(f"no line with {words} in {lines}")


# Frames ---------------------------------------------------------------------------------------------------------


def head(length: int, api_key: int, version: int = 3) -> bytes:
    return struct.pack(">ihh", length, api_key, version)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(head(0, 3), id="no-bytes"),
        pytest.param(head(-1, 3), id="negative"),
        pytest.param(head(-(2**31), 3), id="most-negative"),
        pytest.param(head(7, 3), id="shorter-than-a-header"),
        pytest.param(head(HUGE, PRODUCE, 9), id="longest"),
        pytest.param(head(MAX_PRODUCE_BYTES + 1, PRODUCE, 9), id="above-the-limit-of-produce"),
        pytest.param(head(MAX_OTHER_BYTES + 1, METADATA), id="above-the-limit-of-metadata"),
        pytest.param(head(100, 4), id="leader-and-isr"),
        pytest.param(head(100, 9999), id="no-such-api"),
        pytest.param(head(100, -1), id="negative-api"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), id="tls"),
        pytest.param(framed(struct.pack(">hhih", METADATA, 3, 1, 30_000)), id="client-id-beyond-the-end"),
        pytest.param(framed(struct.pack(">hhih", METADATA, 3, 1, -2)), id="client-id-of-length-minus-2"),
        pytest.param(framed(struct.pack(">hhihb", METADATA, 3, 1, 1, -1)), id="client-id-not-utf-8"),
        pytest.param(framed(struct.pack(">hhih", METADATA, 3, 1, -1)), id="no-body"),
        pytest.param(framed(struct.pack(">hhih", METADATA, 14, 1, -1)), id="version-too-new"),
        pytest.param(framed(struct.pack(">hhih", METADATA, -1, 1, -1)), id="negative-version"),
    ],
)
def test_what_is_no_request_closes_the_connection(
    shared: ServerProcess, client: RawClient, witness: RawClient, sent: bytes
):
    before = rss_bytes(shared.pid)
    with logged(shared, "WARNING", "127.0.0.1:", "connection closed"):
        client.send_bytes(sent)
        assert client.is_closed_by_server()
    assert rss_bytes(shared.pid) - before < 4 * MIB


def test_a_length_alone_takes_no_memory(shared: ServerProcess, witness: RawClient):
    before = rss_bytes(shared.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            client = stack.enter_context(RawClient(shared.port))
            client.send_bytes(head(MAX_PRODUCE_BYTES, PRODUCE, 9))
        assert witness.is_alive()
        assert rss_bytes(shared.pid) - before < 16 * MIB


def test_requests_that_never_end_are_bounded_all_together(start_server: Callable[..., ServerProcess]):
    """Ten peers that send 50 MiB of a request each, and no last byte: twice what may be buffered."""
    server = start_server()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(10)]
        before = rss_bytes(server.pid)
        for client in clients:
            client.set_timeout(0.3)
            with contextlib.suppress(TimeoutError, ConnectionError):
                client.send_bytes(head(60 * MIB, PRODUCE, 9))
                for _ in range(50):
                    client.send_bytes(bytes(MIB))
        assert rss_bytes(server.pid) - before < 320 * MIB
        with RawClient(server.port) as other:
            assert other.is_alive()


def test_a_frame_that_is_cut_short_is_forgotten(shared: ServerProcess, witness: RawClient):
    sound = request_bytes(METADATA, 9, topics=None)
    for cut in range(len(sound)):
        with RawClient(shared.port) as torn:
            torn.send_bytes(sound[:cut])


def test_a_request_one_byte_at_a_time_is_answered(client: RawClient, witness: RawClient):
    for byte in request_bytes(METADATA, 9, 12, topics=None):
        client.send_bytes(bytes([byte]))
        assert witness.is_alive()
    correlation_id, answer = response_of(client.read_frame(), METADATA, 9)
    assert correlation_id == 12
    assert "canary" in {topic.name for topic in answer.topics}


# Counts ---------------------------------------------------------------------------------------------------------


def unsigned_varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(data) + bytes([number])


def old_metadata(size: int) -> bytes:
    """Metadata 3 with an array of *size* topics, of which there is one."""
    return framed(struct.pack(">hhihi", METADATA, 3, 1, -1, size) + struct.pack(">hB", 1, 97))


def new_metadata(size: int) -> bytes:
    """Metadata 9 likewise, whose lengths are varints, one more than they say."""
    return framed(
        struct.pack(">hhihb", METADATA, 9, 1, -1, 0) + unsigned_varint(size) + b"\x02a\x00\x00\x00\x00\x00"
    )


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(old_metadata(HUGE), id="int32"),
        pytest.param(old_metadata(-2), id="negative-int32"),
        pytest.param(new_metadata(1 << 20), id="2**20"),
        pytest.param(new_metadata(HUGE), id="2**31"),
        pytest.param(new_metadata(2**32 - 1), id="2**32"),
        pytest.param(new_metadata(2**35 - 1), id="2**35"),
        pytest.param(new_metadata(2**63 - 1), id="2**63"),
        pytest.param(new_metadata(2**70), id="varint-without-end"),
    ],
)
def test_a_count_beyond_the_bytes_that_follow_closes_the_connection(
    start_server: Callable[..., ServerProcess], sent: bytes
):
    """Also where memory is scarce: no room is made for what has not come."""
    server = start_server()
    limit = virtual_bytes(server.pid) + 2048 * MIB
    resource.prlimit(server.pid, resource.RLIMIT_AS, (limit, limit))
    with RawClient(server.port) as witness, RawClient(server.port) as client:
        before = rss_bytes(server.pid)
        client.send_bytes(sent)
        assert client.is_closed_by_server()
        assert witness.is_alive(), server.log()[-500:]
        assert rss_bytes(server.pid) - before < 16 * MIB


@pytest.mark.parametrize(
    ("api_key", "version", "field", "place"),
    [
        pytest.param(PRODUCE, 9, "topic_data", 7, id="Produce"),
        pytest.param(FETCH, 12, "topics", 25, id="Fetch"),
        pytest.param(15, 5, "groups", 0, id="DescribeGroups"),
        pytest.param(37, 2, "topics", 0, id="CreatePartitions"),
    ],
)
def test_null_for_an_array_that_cannot_be_null_is_no_request(
    shared: ServerProcess,
    client: RawClient,
    witness: RawClient,
    api_key: int,
    version: int,
    field: str,
    place: int,
):
    """Nor is it an error of a handler, which would log a traceback."""
    name = b"raw client"
    header = struct.pack(">hhih", api_key, version, 1, len(name)) + name + b"\x00"
    sound = request_bytes(api_key, version, 1, **{field: []})[4:]
    assert sound.startswith(header)
    body = bytearray(sound[len(header) :])
    assert body[place] == 1, "no element"
    body[place] = 0
    with logged_errors(shared) as errors:
        client.send_bytes(framed(header + body))
        assert client.is_closed_by_server()
    assert not errors


def test_a_request_of_very_many_parts_does_not_hold_up_the_others(
    shared: ServerProcess, client: RawClient, witness: RawClient
):
    """The longest LeaveGroup there may be, of members whose names are empty."""
    count = MAX_OTHER_BYTES // 3 - 100
    members = unsigned_varint(count + 1) + b"\x01\x00\x00" * count
    with without_much_work(shared):
        client.send_bytes(framed(struct.pack(">hhihb", 13, 4, 1, -1, 0) + b"\x02g" + members + b"\x00"))
        time.sleep(0.05)
        assert witness.is_alive()


# Fuzz -----------------------------------------------------------------------------------------------------------

WORDS = ("fuzz", "fuzz-group", "range", "consumer", "")


def plausible(cls: type[Any], rng: random.Random) -> Any:
    """A message of *cls* in which no array is empty, with values that may well mean something."""
    hints = typing.get_type_hints(cls)
    values = {field.name: guess(hints[field.name], rng) for field in dataclasses.fields(cls)}
    return message(cls, {name: value for name, value in values.items() if value is not None})


def guess(hint: Any, rng: random.Random) -> Any:
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    if type(None) in typing.get_args(hint):
        return guess(parts[0], rng) if rng.random() < 0.8 else None
    if dataclasses.is_dataclass(hint):
        fields = typing.get_type_hints(hint)
        return {
            field.name: guess(fields[field.name], rng)
            for field in dataclasses.fields(typing.cast("type[Any]", hint))
        }
    if typing.get_origin(hint) is tuple:
        return [guess(parts[0], rng)]
    name = repr(hint).lower()
    if "timedelta" in name:
        return rng.choice((0, 10, 1000))
    if "errorcode" in name or "tzaware" in name:
        return None
    if "uuid" in name:
        return uuid.UUID(int=rng.randrange(3))
    if isinstance(hint, type) and issubclass(hint, bool):
        return rng.random() < 0.5
    if (isinstance(hint, type) and issubclass(hint, bytes)) or name.endswith("records"):
        return batch(b"fuzz", timestamp_ms=1)
    if (isinstance(hint, type) and issubclass(hint, str)) or "str" in repr(
        getattr(hint, "__supertype__", "")
    ):
        return rng.choice(WORDS)
    return rng.choice((-1, 0, 1, 2))


def damaged(frame: bytes, rng: random.Random) -> bytes:
    """The frame with some bits flipped, or cut, with a length that is right again."""
    payload = bytearray(frame[4:])
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        place = rng.randrange(4, len(payload))  # not the API and version: others have their own turn
        payload[place] ^= 1 << rng.randrange(8)
    if rng.random() < 0.25:
        del payload[rng.randrange(8, len(payload) + 1) :]
    return framed(bytes(payload))


def requests_of_every_api(rng: random.Random) -> Iterator[bytes]:
    kinds = [(key, version) for key, versions in VERSIONS.items() for version in versions]
    while True:
        rng.shuffle(kinds)
        for key, version in kinds:
            schema = load_request_schema(key, version)
            header = {"request_api_key": key, "request_api_version": version, "correlation_id": 1}
            begin = encode(message(schema.__header_schema__, header | {"client_id": "fuzz"}))
            yield framed(begin + encode(plausible(schema, rng)))


def test_damaged_requests_of_every_api_harm_nobody(
    start_server: Callable[..., ServerProcess], rng: random.Random
):
    server = start_server()
    with RawClient(server.port) as witness:
        witness.create("canary")
        witness.produce("canary", batch(b"alive"))
        stored = records_of(witness.fetch({"canary": 0}))
        before = rss_bytes(server.pid)
        requests = requests_of_every_api(rng)
        for number in range(FRAMES // 5):
            with socket.create_connection(("127.0.0.1", server.port)) as peer, contextlib.suppress(OSError):
                for _ in range(5):
                    frame = damaged(next(requests), rng)
                    peer.sendall(frame)
            if number % 20 == 0:
                assert witness.is_alive(), server.log()[-2000:]
        assert witness.is_alive(), server.log()[-2000:]
        assert records_of(witness.fetch({"canary": 0})) == stored
        assert rss_bytes(server.pid) - before < 100 * MIB
    words = (" ERROR ", "never retrieved", "never awaited", "was destroyed")
    errors = {line[24:] for line in server.log().splitlines() if any(word in line for word in words)}
    assert not errors, "\n".join(sorted(errors))
    assert server.stop() == 0


@pytest.mark.parametrize("api_key", APIS)
def test_a_plausible_request_of_any_version_is_answered_or_refused_without_a_traceback(
    shared: ServerProcess, witness: RawClient, rng: random.Random, api_key: int
):
    with logged_errors(shared) as errors:
        for version in VERSIONS[api_key]:
            schema = load_request_schema(api_key, version)
            header = {"request_api_key": api_key, "request_api_version": version, "correlation_id": 1}
            begin = encode(message(schema.__header_schema__, header | {"client_id": "fuzz"}))
            for _ in range(5):
                with RawClient(shared.port) as peer:
                    peer.send_bytes(framed(begin + encode(plausible(schema, rng))))
        assert witness.is_alive()
    assert not errors


@contextlib.contextmanager
def logged_errors(server: ServerProcess) -> Iterator[list[str]]:
    before, errors = len(server.log()), []
    yield errors
    time.sleep(0.05)
    errors += [line for line in server.log()[before:].splitlines() if " ERROR " in line]


# Batches --------------------------------------------------------------------------------------------------------


def flipped(sound: bytes, place: int) -> bytes:
    altered = bytearray(sound)
    altered[place] ^= 1
    return bytes(altered)


def recompressed(content: bytes, codec: Compression, **header: Any) -> bytes:
    """A batch whose records are *content*, said to be compressed with *codec*."""
    return resealed(changed(batch(b"x"), attributes=codec, **header)[:HEADER_BYTES] + content)


def zstd_bomb(*, declares_size: bool) -> bytes:
    """A few kB that become 65 MiB and one byte."""
    params = zstandard.ZstdCompressionParameters.from_level(3, write_content_size=declares_size)
    compressor = zstandard.ZstdCompressor(compression_params=params)
    if declares_size:
        return compressor.compress(bytes(65 * MIB + 1))
    stream = compressor.compressobj()
    return stream.compress(bytes(65 * MIB + 1)) + stream.flush()


ZSTD_OF_2_TO_62 = bytes.fromhex("28b52ffd e0 0000000000000040 010000".replace(" ", ""))
SOUND = batch(b"one", b"two")
CORRUPT, INVALID = ErrorCode.corrupt_message, ErrorCode.invalid_record
NOW_MS = int(time.time() * 1000)
YEAR_MS = 365 * 24 * 3600 * 1000

BATCHES: dict[str, tuple[bytes | None, set[ErrorCode]]] = {
    "null": (None, {CORRUPT, INVALID}),
    "empty": (b"", {CORRUPT, INVALID}),
    "header cut short": (SOUND[:60], {CORRUPT}),
    "records cut short": (SOUND[:-1], {CORRUPT}),
    "zeros": (bytes(100), {CORRUPT}),
    "wrong checksum": (flipped(SOUND, 17), {CORRUPT}),
    "a flipped bit in a value": (flipped(SOUND, len(SOUND) - 2), {CORRUPT}),
    "magic 0": (SOUND[:16] + b"\x00" + SOUND[17:], {CORRUPT}),
    "magic 1": (SOUND[:16] + b"\x01" + SOUND[17:], {CORRUPT}),
    "magic 3": (SOUND[:16] + b"\x03" + SOUND[17:], {CORRUPT}),
    "length 0": (SOUND[:8] + bytes(4) + SOUND[12:], {CORRUPT}),
    "negative length": (SOUND[:8] + b"\xff" * 4 + SOUND[12:], {CORRUPT}),
    "length too large": (SOUND[:8] + (len(SOUND) - 11).to_bytes(4, "big") + SOUND[12:], {CORRUPT}),
    "length too small": (SOUND[:8] + (len(SOUND) - 13).to_bytes(4, "big") + SOUND[12:], {CORRUPT}),
    "two batches": (SOUND + SOUND, {INVALID}),
    "a byte behind the batch": (SOUND + b"\x00", {INVALID}),
    "control batch": (changed(SOUND, attributes=0x20), {INVALID}),
    "control batch of a transaction": (
        changed(SOUND, attributes=0x30, producer_id=1, producer_epoch=0, base_sequence=0),
        {INVALID},
    ),
    "no record": (changed(SOUND[:HEADER_BYTES], batch_length=49, record_count=0), {CORRUPT, INVALID}),
    "one record more": (changed(SOUND, record_count=3, last_offset_delta=2), {CORRUPT, INVALID}),
    "one record less": (changed(SOUND, record_count=1, last_offset_delta=0), {CORRUPT, INVALID}),
    "very many records": (changed(SOUND, record_count=HUGE, last_offset_delta=HUGE), {CORRUPT, INVALID}),
    "very many compressed records": (
        changed(batch(b"x", compression=Compression.ZSTD), record_count=HUGE, last_offset_delta=HUGE - 1),
        {CORRUPT, INVALID},
    ),
    "negative record count": (changed(SOUND, record_count=-1), {CORRUPT, INVALID}),
    "negative last offset": (changed(SOUND, last_offset_delta=-1), {CORRUPT, INVALID}),
    "offsets with a gap": (changed(SOUND, last_offset_delta=9), {INVALID}),
    "records that do not parse": (resealed(SOUND[:HEADER_BYTES] + b"\xff" * 20), {INVALID}),
    "a record longer than the batch": (resealed(SOUND[:-4]), {INVALID}),
    "bytes behind the last record": (resealed(SOUND + b"\x00\x00"), {INVALID}),
    "codec 5": (changed(SOUND, attributes=5), {CORRUPT, INVALID, ErrorCode.unsupported_compression_type}),
    "codec 7": (changed(SOUND, attributes=7), {CORRUPT, INVALID, ErrorCode.unsupported_compression_type}),
    "no gzip": (recompressed(b"no gzip", Compression.GZIP), {CORRUPT, INVALID}),
    "no snappy": (recompressed(b"\xff" * 9, Compression.SNAPPY), {CORRUPT, INVALID}),
    "no lz4": (recompressed(b"no lz4 at all", Compression.LZ4), {CORRUPT, INVALID}),
    "no zstd": (recompressed(b"no zstd at all", Compression.ZSTD), {CORRUPT, INVALID}),
    "zstd that declares 2**62 bytes": (recompressed(ZSTD_OF_2_TO_62, Compression.ZSTD), {CORRUPT, INVALID}),
    "snappy that declares 4 GiB": (
        recompressed(b"\xff\xff\xff\xff\x0f\x00", Compression.SNAPPY),
        {CORRUPT, INVALID},
    ),
    "zstd of 65 MiB": (
        recompressed(zstd_bomb(declares_size=True), Compression.ZSTD),
        {CORRUPT, INVALID, ErrorCode.message_too_large},
    ),
    "zstd of 65 MiB that does not say so": (
        recompressed(zstd_bomb(declares_size=False), Compression.ZSTD),
        {CORRUPT, INVALID, ErrorCode.message_too_large},
    ),
    "a year ahead": (batch(b"x", timestamp_ms=NOW_MS + YEAR_MS), {ErrorCode.invalid_timestamp}),
    "the end of time": (batch(b"x", timestamp_ms=2**63 - 1), {ErrorCode.invalid_timestamp}),
    "a year ahead, which the header hides": (
        changed(
            batch(b"x", timestamp_ms=NOW_MS + YEAR_MS), max_timestamp_ms=NOW_MS
        ),
        {ErrorCode.invalid_timestamp, INVALID},
    ),
    "append time, which is the broker's to give": (
        changed(SOUND, attributes=0x08),
        {ErrorCode.invalid_timestamp, INVALID},
    ),
    "a producer without a sequence": (
        changed(SOUND, producer_id=5, producer_epoch=0, base_sequence=-1),
        {INVALID},
    ),
    "a producer without an epoch": (
        changed(SOUND, producer_id=5, producer_epoch=-1, base_sequence=0),
        {INVALID, ErrorCode.invalid_producer_epoch},
    ),
    "a producer with a negative sequence": (
        changed(SOUND, producer_id=5, producer_epoch=0, base_sequence=-7),
        {CORRUPT, INVALID},
    ),
    "a negative producer": (
        changed(SOUND, producer_id=-7, producer_epoch=0, base_sequence=0),
        {CORRUPT, INVALID},
    ),
    "a transaction without a producer": (changed(SOUND, attributes=0x10), {INVALID}),
    "a transaction that nobody began": (
        changed(SOUND, attributes=0x10, producer_id=5, producer_epoch=0, base_sequence=0),
        {ErrorCode.invalid_txn_state, ErrorCode.invalid_producer_id_mapping},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_an_unsound_batch_is_refused(shared: ServerProcess, client: RawClient, witness: RawClient, name: str):
    records, expected = BATCHES[name]
    before = rss_bytes(shared.pid)
    answer = client.produce("canary", records)
    assert answer.error_code in expected, answer
    assert answer.base_offset == -1
    assert client.is_alive(), "the batch is refused, not the connection"
    assert rss_bytes(shared.pid) - before < 150 * MIB


def test_a_partition_that_is_not_there_is_refused(client: RawClient, witness: RawClient):
    for partition in (-1, 1, HUGE, -(2**31)):
        answer = client.produce("canary", SOUND, partition=partition)
        assert answer.error_code is ErrorCode.unknown_topic_or_partition


@pytest.mark.parametrize("topic", ["", ".", "..", "a/b", "../canary-0", "a" * 250, "a b", "ä", "__journal"])
def test_a_topic_that_may_not_be_named_so_is_neither_made_nor_written_to(
    client: RawClient, witness: RawClient, topic: str
):
    allowed = {ErrorCode.invalid_topic_exception, ErrorCode.unknown_topic_or_partition}
    assert client.produce(topic, SOUND).error_code in allowed
    (described,) = client.send(METADATA, 9, topics=[{"name": topic}], allow_auto_topic_creation=True).topics
    assert described.error_code in allowed


@pytest.mark.parametrize("acks", [2, -2, 32767])
def test_acks_of_no_meaning_are_refused(client: RawClient, witness: RawClient, acks: int):
    answer = client.produce("canary", SOUND, acks=acks)
    assert answer.error_code is ErrorCode.invalid_required_acks


def test_one_unsound_batch_does_not_harm_the_others_of_its_request(client: RawClient):
    topic = "partly"
    client.create(topic, 2)
    parts = [{"index": 0, "records": flipped(SOUND, 17)}, {"index": 1, "records": SOUND}]
    data = [{"name": topic, "partition_data": parts}]
    (answer,) = client.send(PRODUCE, 9, acks=-1, timeout=1000, topic_data=data).responses
    assert [part.error_code for part in answer.partition_responses] == [CORRUPT, OK]
    assert (client.end_offset(topic, 0), client.end_offset(topic, 1)) == (0, 2)


# Expressions ------------------------------------------------------------------------------------------------------


def test_an_expression_without_end_holds_nobody_up(start_server: Callable[..., ServerProcess]):
    """ListTransactions 2 takes a regular expression, and the client chooses what it is matched with."""
    server = start_server()
    with RawClient(server.port) as client, RawClient(server.port) as witness:
        client.new_producer("a" * 40 + "!")
        client.begin(66, 2, duration_filter=-1, transactional_id_pattern="(a+)+b")
        time.sleep(0.1)
        assert witness.is_alive()


def test_an_expression_of_a_consumer_group_holds_nobody_up(start_server: Callable[..., ServerProcess]):
    server = start_server()
    with RawClient(server.port) as client, RawClient(server.port) as witness:
        client.create("a" * 40)
        client.begin(
            68,
            1,
            group_id="group",
            member_id=str(uuid.uuid4()),
            rebalance_timeout=10_000,
            subscribed_topic_regex="(a+)+b",
            topic_partitions=[],
        )
        time.sleep(0.1)
        assert witness.is_alive()


# Share groups -----------------------------------------------------------------------------------------------------


@pytest.fixture
def share(server: ServerProcess) -> Iterator[Callable[[], RawSharer]]:
    """Members of a share group that reads the topic t, where 100 records lie, from its beginning."""
    with logbroker.open(server.data) as broker, RawClient(server.port) as client:
        topic_id = client.create("t")
        broker.create_subscription("g", topic="t", max_deliveries=10_000)
        for _ in range(10):
            assert client.produce("t", batch(*[b"x"] * 10)).error_code is OK
    members: list[RawSharer] = []

    def join() -> RawSharer:
        members.append(RawSharer(server.port, "g", "t", topic_id))
        return members[-1]

    yield join
    for member in members:
        member.close()


def offsets_in(ranges: list[tuple[int, int, int]]) -> list[int]:
    return [offset for first, last, _ in ranges for offset in range(first, last + 1)]


def test_acknowledgements_at_random_settle_nothing_that_is_not_the_members(
    share: Callable[[], RawSharer], rng: random.Random
):
    """What is left when all have gone is what nobody had accepted or rejected with success."""
    sharers = [share() for _ in range(3)]
    assert all(sharer.fetch(max_records=0).error is OK for sharer in sharers)
    left = set(range(100))
    held: list[set[int]] = [set() for _ in sharers]
    for _ in range(300):
        number = rng.randrange(3)
        if rng.random() < 0.3:
            found = sharers[number].fetch(max_records=rng.randrange(1, 20), share_acquire_mode=RECORD_LIMIT)
            held[number] |= set(offsets_in(found.ranges))
            continue
        first = rng.randrange(100)
        last = min(first + rng.choice((0, 0, 1, 5, 1 << 40)), 99 if rng.random() < 0.9 else 1 << 62)
        kind = rng.choice((ACCEPT, RELEASE, REJECT))
        error = sharers[number].acknowledge(0, [(first, last, kind)])
        wanted = set(range(first, last + 1)) if last < 200 else {1 << 40}
        assert (error is OK) == (wanted <= held[number]), (first, last, error)
        if error is OK:
            held[number] -= wanted
            left -= wanted if kind != RELEASE else set()
    for sharer in sharers:
        assert sharer.fetch(epoch=FINAL, max_records=0).error is OK
    assert set(offsets_in(share().fetch().ranges)) == left


def test_very_many_acknowledgements_at_once_hold_nobody_up(
    share: Callable[[], RawSharer], server: ServerProcess
):
    sharer = share()
    sharer.fetch()
    with RawClient(server.port) as witness:
        for count, refusal in (
            (MAX_RANGES, ErrorCode.invalid_record_state),
            (90_000, ErrorCode.invalid_request),
        ):
            types = [ACCEPT, RELEASE] * (count // 2)
            with without_much_work(server):
                assert sharer.acknowledge(0, [(0, len(types) - 1, types)]) is refusal
                assert witness.is_alive()
    assert sharer.acknowledge(0, [(0, 99, ACCEPT)]) is OK


def test_there_are_as_many_share_sessions_as_may_be_and_they_end_with_their_connection(
    share: Callable[[], RawSharer], server: ServerProcess
):
    other = share()
    with RawClient(server.port) as greedy:
        for number in range(MAX_SHARE_SESSIONS):
            greedy.begin(78, 2, group_id="g", member_id=f"m{number}", share_session_epoch=0)
            if greedy.unanswered == 50:
                assert all(greedy.receive().error_code is OK for _ in range(50))
        assert other.fetch(epoch=0).error is ErrorCode.share_session_limit_reached
    deadline = time.monotonic() + HANG_S
    while other.fetch(epoch=0, max_records=0).error is not OK:
        assert time.monotonic() < deadline


def test_members_that_leave_while_they_fetch_take_nothing_along(
    share: Callable[[], RawSharer], server: ServerProcess
):
    with RawClient(server.port) as client:
        for number in range(60):
            sharer = share()
            sharer.begin_fetch(max_wait=20_000)
            if number % 3:
                sharer.begin_fetch(max_wait=20_000)
            if number % 2:
                assert client.produce("t", batch(b"y")).error_code is OK
            sharer.close()
    last = share()
    found: set[int] = set()
    deadline = time.monotonic() + HANG_S
    while len(found) < 130:
        found |= set(offsets_in(last.fetch(max_wait=200).ranges))
        assert time.monotonic() < deadline, sorted(set(range(130)) - found)


def test_a_member_that_names_too_many_topics_is_refused(client: RawClient, witness: RawClient):
    names = [f"topic-{number}" for number in range(3000)]
    answer = client.send(76, 1, group_id="greedy", member_id="m", subscribed_topic_names=names)
    assert answer.error_code is ErrorCode.invalid_request


# Leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 12])
def test_a_peer_may_leave_while_its_fetch_waits(shared: ServerProcess, witness: RawClient, version: int):
    """As every consumer does that ends: no error of anybody."""
    before, end_offset = len(shared.log()), witness.end_offset("canary")
    for _ in range(5):
        with RawClient(shared.port) as client:
            client.begin_fetch({"canary": end_offset}, version=version, max_wait=20_000)
            client.begin_fetch({"canary": end_offset}, version=version, max_wait=20_000)
            client.begin(API_VERSIONS, 0)
            assert witness.is_alive(), "by then the first fetch waits"
    assert witness.is_alive()
    assert shared.log()[before:] == ""


def test_a_peer_may_leave_in_the_middle_of_a_large_answer(
    start_server: Callable[..., ServerProcess],
):
    server = start_server()
    with RawClient(server.port) as witness:
        witness.create("large", max_message_bytes=str(32 * MIB))
        for _ in range(4):
            assert witness.produce("large", batch(os.urandom(8 * MIB))).error_code is OK
        files = len(os.listdir(f"/proc/{server.pid}/fd"))
        for _ in range(10):
            with RawClient(server.port, receive_buffer_bytes=16 * KIB) as client:
                client.begin_fetch({"large": 0})
                client.begin_fetch({"large": 0})
                client.read_frame_head()
        assert len(records_of(witness.fetch({"large": 0}))["large"]) > 32 * MIB
        assert len(os.listdir(f"/proc/{server.pid}/fd")) <= files + 4
    assert not [line for line in server.log().splitlines() if " ERROR " in line or "Traceback" in line]


# Greed ------------------------------------------------------------------------------------------------------------


def test_a_peer_that_reads_no_answer_is_bounded(start_server: Callable[..., ServerProcess]):
    """It asks for 20 MiB again and again: without a bound that would be 4 GiB."""
    server = start_server()
    with RawClient(server.port) as writer, RawClient(server.port, receive_buffer_bytes=64 * KIB) as greedy:
        writer.create("large", max_message_bytes=str(32 * MIB))
        for _ in range(20):
            assert writer.produce("large", batch(os.urandom(MIB - 200))).error_code is OK
        before = rss_bytes(server.pid)
        greedy.set_timeout(0.5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(200):
                greedy.begin_fetch({"large": 0})
        grown = 0
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            grown = max(grown, rss_bytes(server.pid) - before)
            assert writer.is_alive()
            time.sleep(0.05)
        assert grown < 256 * MIB, f"{grown / MIB:.0f} MiB"
        assert records_of(writer.fetch({"large": 0}, max_bytes=1))["large"]
    deadline = time.monotonic() + HANG_S
    while rss_bytes(server.pid) - before > 128 * MIB:
        assert time.monotonic() < deadline, "what was held for it is not given back"
        time.sleep(0.05)


def test_peers_that_read_slowly_hold_nobody_up(start_server: Callable[..., ServerProcess]):
    """More of them than the server has threads for large answers."""
    server = start_server()
    with RawClient(server.port) as reader, contextlib.ExitStack() as stack:
        reader.create("large", max_message_bytes=str(32 * MIB))
        assert reader.produce("large", batch(os.urandom(16 * MIB))).error_code is OK
        for _ in range(24):
            slow = stack.enter_context(RawClient(server.port, receive_buffer_bytes=16 * KIB))
            slow.begin_fetch({"large": 0})
            slow.read_frame_head()
        assert len(records_of(reader.fetch({"large": 0}))["large"]) > 16 * MIB
        assert reader.produce("other", SOUND).error_code is OK


def test_very_many_requests_at_once_hold_nobody_up(start_server: Callable[..., ServerProcess]):
    """20,000 requests of 30 bytes, each of which asks for 50 kB and reads none of it."""
    server = start_server()
    with RawClient(server.port) as witness, RawClient(server.port, receive_buffer_bytes=4 * KIB) as greedy:
        witness.create("wide", 2000)
        before = rss_bytes(server.pid)
        greedy.set_timeout(0.5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(20_000):
                greedy.begin(METADATA, 12, topics=None)
        with without_much_work(server):
            assert witness.is_alive()
        assert rss_bytes(server.pid) - before < 64 * MIB


def test_500_idle_connections_cost_little(start_server: Callable[..., ServerProcess]):
    server = start_server()
    with RawClient(server.port) as witness, contextlib.ExitStack() as stack:
        assert witness.is_alive()
        before = rss_bytes(server.pid)
        clients = [stack.enter_context(RawClient(server.port)) for _ in range(500)]
        assert all(client.is_alive() for client in clients)
        assert rss_bytes(server.pid) - before < 60 * MIB
        with without_much_work(server):
            assert witness.is_alive()
        deadline = time.monotonic() + HANG_S
        while share_of_a_processor(server.pid) >= 0.02:  # whatever the openings left to do
            assert time.monotonic() < deadline


def test_connections_that_come_and_go_leave_nothing(start_server: Callable[..., ServerProcess]):
    server = start_server()

    def come_and_go(times: int) -> None:
        for _ in range(times):
            with RawClient(server.port) as client:
                client.begin(API_VERSIONS, 0)

    come_and_go(300)
    before, files = rss_bytes(server.pid), len(os.listdir(f"/proc/{server.pid}/fd"))
    come_and_go(1000)
    with RawClient(server.port) as client:
        assert client.is_alive()
    assert rss_bytes(server.pid) - before < 16 * MIB
    deadline = time.monotonic() + 10  # the last of them are just going
    while len(os.listdir(f"/proc/{server.pid}/fd")) > files + 8:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prlimit")
def test_a_request_that_cannot_be_taken_up_closes_its_connection(start_server: Callable[..., ServerProcess]):
    """The first one of a version has its schema imported, for which a server that is full has no descriptor."""
    server = start_server()
    with RawClient(server.port) as client, logged(server, "could not be taken up", "Too many open files"):
        assert client.is_alive()
        allowed = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (1, allowed[1]))
        client.begin(METADATA, 5, topics=None, allow_auto_topic_creation=False)
        closed = client.is_closed_by_server()
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, allowed)
        assert closed
    with RawClient(server.port) as client:
        assert client.send(METADATA, 5, topics=None, allow_auto_topic_creation=False).topics == ()


# The end ------------------------------------------------------------------------------------------------------------


def test_a_produce_in_flight_is_answered_when_the_server_ends(server: ServerProcess):
    with RawClient(server.port) as client:
        client.create("orders")
        for _ in range(20):
            client.begin_produce("orders", batch(b"x"))
        client.receive()  # the rest is at work, or on its way
        os.kill(server.pid, signal.SIGTERM)
        answered = 1
        with contextlib.suppress(ConnectionError):
            while client.unanswered:
                ((answer,),) = [found.partition_responses for found in client.receive().responses]
                assert answer.error_code is OK
                answered += 1
    assert server.stop() == 0
    server.start()
    with RawClient(server.port) as client:
        assert client.end_offset("orders") >= answered


@pytest.fixture
def patient(tmp_path: Path) -> ServerThread:
    """A server that at its end gives requests at work an hour: one that waits for them does not end."""
    return ServerThread(str(tmp_path / "data"), OsFiles(), SYSTEM_CLOCK, drain_timeout_s=3600.0).start()


def test_the_server_ends_soon_though_a_fetch_waits(patient: ServerThread):
    with RawClient(patient.port) as client, RawClient(patient.port) as other:
        client.create("orders")
        client.begin_fetch({"orders": 0}, max_wait=60_000)
        assert other.is_alive(), "by then the fetch waits"
        began = time.monotonic()
        patient.stop()
        assert time.monotonic() - began < HANG_S


def test_the_server_ends_soon_though_a_client_goes_on_asking(patient: ServerThread):
    """As a consumer does: the next fetch follows the answer to the one before."""
    with RawClient(patient.port) as client:
        client.create("orders")
        stopping = threading.Event()

        def ask() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client.fetch({"orders": 0}, max_wait=100)
                    stopping.set()

        asking = threading.Thread(target=ask)
        asking.start()
        assert stopping.wait(HANG_S)
        patient.stop()
        asking.join()


def test_idle_connections_do_not_hold_up_the_end(patient: ServerThread):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(patient.port)) for _ in range(20)]
        assert all(client.is_alive() for client in clients)
        clients[0].send_bytes(head(1000, METADATA))  # half a request
        patient.stop()
        assert all(client.is_closed_by_server() for client in clients)


# The command line -------------------------------------------------------------------------------------------------


def serve(data: Path, *arguments: str) -> tuple[int, bytes, list[str]]:
    command = [sys.executable, "-m", "logbroker.cli.app", "--data", str(data), "serve", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr.decode().splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--listen", "nonsense"),
        ("--listen", "127.0.0.1:99999"),
        ("--listen", "127.0.0.1:-1"),
        ("--listen", ":9092"),
        ("--listen", "127.0.0.1:0", "--advertise", "here"),
        ("--listen", "127.0.0.1:0", "--metrics", "0"),
        ("--listen", f"{'a' * 64}:9092"),
        ("--listen", "two..dots:9092"),
        ("--listen", "127.0.0.1:0", "--advertise", "\udcff:9092"),
        ("--listen", "127.0.0.1:0", "--metrics", ".:9093"),
        ("--listen", "127.0.0.1:0", "--partitions", "0"),
        ("--listen", "127.0.0.1:0", "--group-heartbeat", "inf", "--group-session", "inf"),
        ("--listen", "127.0.0.1:0", "--group-session", "2147484"),
        ("--listen", "127.0.0.1:0", "--group-heartbeat", "45"),
        ("--listen", "127.0.0.1:0", "--group-heartbeat", "2", "--group-session", "2"),
        ("--listen", "127.0.0.1:0", "--log-level", "loud"),
        ("--listen", "127.0.0.1:0", "--nonsense"),
    ],
    ids=lambda arguments: ascii(" ".join(arguments)),
)
def test_wrong_usage_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...]):
    code, out, errors = serve(tmp_path / "data", *arguments)
    assert (code, out, len(errors)) == (2, b"", 1), errors


def test_a_port_in_use_is_told_in_one_line(server: ServerProcess, tmp_path: Path):
    code, out, errors = serve(tmp_path / "other", "--listen", server.address)
    assert (code, out, len(errors)) == (1, b"", 1), errors
    assert server.address in errors[0]


def test_an_address_that_is_not_ours_is_told_in_one_line(tmp_path: Path):
    code, out, errors = serve(tmp_path / "data", "--listen", "192.0.2.1:9092")
    assert (code, out, len(errors)) == (1, b"", 1), errors


def test_a_metrics_port_in_use_is_told_in_one_line(server: ServerProcess, tmp_path: Path):
    code, out, errors = serve(tmp_path / "other", "--listen", "127.0.0.1:0", "--metrics", server.address)
    assert (code, out, len(errors)) == (1, b"", 1), errors
    assert server.address in errors[0]


def serve_into(data: Path, out: int) -> tuple[int, bytes]:
    command = [
        sys.executable,
        "-m",
        "logbroker.cli.app",
        "--data",
        str(data),
        "serve",
        "--listen",
        "127.0.0.1:0",
    ]
    done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=30, check=False)
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_what_cannot_be_told_on_stdout_is_no_fault_of_the_address(tmp_path: Path):
    with Path("/dev/full").open("wb") as full:
        code, errors = serve_into(tmp_path / "data", full.fileno())
    assert code == 1
    assert errors.splitlines()[-1] == b"logbroker: No space left on device"
    assert b"stopped serving" in errors, "the directory was left in order"


def test_a_stdout_that_nobody_reads_ends_it_quietly(tmp_path: Path):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        code, errors = serve_into(tmp_path / "data", writing)
    finally:
        os.close(writing)
    assert code == 0
    assert b"logbroker: " not in errors
