"""Named producers: what is sent again after a crash is appended exactly once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import logbroker
from logbroker import Broker, Message
from logbroker.errors import FencedError, InvalidRequestError, WriteFailedError
from logbroker.named_producer import block_of, stored_base_sequence
from logbroker_storage.files import OsFiles
from logbroker_storage.record_batch import decode_records, encode_values
from logbroker_storage.testing import FaultyFiles

FOREVER = 1000.0


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles(OsFiles())


@pytest.fixture
def broker(tmp_path, files) -> Iterator[Broker]:
    with logbroker.open(tmp_path / "data", files=files) as broker:
        broker.create_topic("t", partitions=2)
        yield broker


def values(broker: Broker, partition: int = 0) -> list[bytes | None]:
    reader = broker._directory.log("t", partition).reader(0)
    found: list[bytes | None] = []
    while batches := reader.read(1 << 20):
        for batch in batches:
            found += [record.value for record in decode_records(batch, "t", partition)]
    return found


def send_all(producer, sequences, partition=0):
    return [producer.send("t", b"%d" % number, partition=partition, sequence=number) for number in sequences]


def test_a_name_that_never_wrote_has_no_last_sequence(broker):
    with broker.producer(name="loader") as producer:
        assert producer.name == "loader"
        assert producer.last_sequence("t") is None
        assert producer.last_sequence("t", partition=1) is None


def test_what_was_sent_before_a_restart_is_not_appended_again(broker):
    with broker.producer(name="loader") as producer:
        send_all(producer, range(10))
    with broker.producer(name="loader") as producer:
        assert producer.last_sequence("t", partition=0) == 9
        receipts = send_all(producer, range(15))
    assert [receipt.result().offset for receipt in receipts] == [-1] * 10 + list(range(10, 15))
    assert values(broker) == [b"%d" % number for number in range(15)]


def test_sequences_are_counted_for_each_partition_and_may_have_gaps(broker):
    with broker.producer(name="loader", batch_bytes=100) as producer:
        send_all(producer, [3, 7, 100, 101, 5000])
        send_all(producer, [1, 2], partition=1)
        assert producer.send("t", b"again", partition=0, sequence=5000).result().offset == -1
        assert producer.last_sequence("t", partition=0) == 5000
    with broker.producer(name="loader") as producer:
        assert producer.last_sequence("t", partition=0) == 5000
        assert producer.last_sequence("t", partition=1) == 2


def test_without_a_sequence_the_next_one_is_taken(broker):
    with broker.producer(name="loader") as producer:
        producer.send("t", b"0", partition=0)
        producer.send_many("t", [b"1", b"2"], partition=0)
        producer.send("t", b"10", partition=0, sequence=10)
        producer.send_many("t", iter([b"11"]), partition=0)
        producer.send_many("t", [Message(b"20", sequence=20), Message(b"again", sequence=20)], partition=0)
        assert producer.last_sequence("t") == 20
    assert values(broker) == [b"0", b"1", b"2", b"10", b"11", b"20"]


def test_the_view_is_not_needed_to_know_the_last_sequence(broker, tmp_path):
    with broker.producer(name="loader") as producer:
        send_all(producer, [5, 6])
    broker.close()
    for name in os.listdir(tmp_path / "data" / "view"):
        if name.endswith(".mdb"):
            os.unlink(tmp_path / "data" / "view" / name)
    with logbroker.open(tmp_path / "data") as again, again.producer(name="loader") as producer:
        assert producer.last_sequence("t") == 6
        send_all(producer, [6, 7])
        producer.flush()
        assert values(again) == [b"5", b"6", b"7"]


def test_sequences_beyond_31_bits_go_to_another_producer_id(broker):
    edge = 1 << 31
    sequences = [edge - 2, edge - 1, edge, edge + 1, 5 * edge + 3, (1 << 62) - 1]
    with broker.producer(name="loader", linger=FOREVER) as producer:
        send_all(producer, sequences)
    with broker.producer(name="loader", linger=FOREVER) as producer:
        assert producer.last_sequence("t") == sequences[-1]
        send_all(producer, sequences)
    assert values(broker) == [b"%d" % number for number in sequences]


def test_a_bulk_send_crosses_the_edge_of_a_block(broker):
    edge = 1 << 31
    with broker.producer(name="loader", linger=FOREVER) as producer:
        send_all(producer, [edge - 3])
        producer.send_many("t", [b"x"] * 5, partition=0)
        producer.flush()
        assert producer.last_sequence("t") == edge + 2
    assert len(values(broker)) == 6


@given(st.lists(st.integers(0, (1 << 62) - 1), min_size=1, max_size=20, unique=True))
def test_a_stored_base_sequence_is_never_negative(sequences):
    block = [number for number in sorted(sequences) if block_of(number) == block_of(min(sequences))]
    assert stored_base_sequence(block[-1], len(block)) >= 0


@pytest.mark.parametrize("sequence", [-1, 1.5, True, "1", 1 << 62])
def test_a_sequence_that_is_no_number_is_refused(broker, sequence):
    with broker.producer(name="loader") as producer, pytest.raises(InvalidRequestError):
        producer.send("t", b"x", partition=0, sequence=sequence)


def test_last_sequence_needs_a_name(broker):
    with broker.producer() as producer, pytest.raises(InvalidRequestError):
        producer.last_sequence("t")


# One holder ---------------------------------------------------------------------------------------


def test_a_new_holder_fences_the_one_before(broker):
    old = broker.producer(name="loader", linger=FOREVER)
    send_all(old, [0])[0].result()
    new = broker.producer(name="loader", linger=FOREVER)
    with pytest.raises(FencedError):
        send_all(old, [1])[0].result()
    with pytest.raises(FencedError):
        old.send("t", b"x", partition=1).result()
    with pytest.raises(FencedError):
        old.last_sequence("t")
    assert new.last_sequence("t") == 0
    send_all(new, [1])[0].result()
    new.close()
    old.close()
    assert values(broker) == [b"0", b"1"]


def test_a_holder_that_was_about_to_append_is_refused_by_the_log(broker):
    """The race behind the epoch: the old holder looked, then the new one claimed, then the old one appends."""
    old = broker.producer(name="loader", linger=FOREVER)
    send_all(old, [0])[0].result()
    old._named._check_current = lambda: None
    receipt = send_all(old, [1])[0]
    with broker.producer(name="loader") as new:
        assert new.last_sequence("t") == 0
        with pytest.raises(FencedError):
            receipt.result()
        send_all(new, [1])[0].result()
    old.close()
    assert values(broker) == [b"0", b"1"]


def test_what_a_dead_process_left_unpublished_counts(broker):
    """Killed between its write and publishing it: the next holder finds the batch in the file."""
    with broker.producer(name="loader") as producer:
        send_all(producer, range(3))
    event = broker._directory.producer_ids.named("loader")
    left = encode_values(
        [b"3", b"4"],
        [(0, 1)],
        base_offset=3,
        producer_id=event.producer_ids[0],
        producer_epoch=event.epoch,
        base_sequence=3,
    )
    log = broker._directory.log("t", 0)
    end = log.state().end
    log.segment(0).write_log(bytes(end.log_end_offset.to_bytes(8, "big") + left[8:]), end.active_bytes)
    with broker.producer(name="loader") as producer:
        assert producer.last_sequence("t") == 4
        send_all(producer, range(6))
    assert values(broker) == [b"%d" % number for number in range(6)]


def test_after_a_failure_nothing_follows_until_the_last_sequence_is_asked(broker, files):
    with broker.producer(name="loader", linger=FOREVER, batch_bytes=100) as producer:
        send_all(producer, [0])[0].result()
        files.fail("pwrite", path=".log", error=errno.ENOSPC)
        receipts = send_all(producer, range(1, 3))
        with pytest.raises(WriteFailedError):
            send_all(producer, range(3, 20))
        with pytest.raises(WriteFailedError):
            producer.flush()
        for receipt in receipts:
            with pytest.raises(WriteFailedError):
                receipt.result()
        assert producer.last_sequence("t") == 0
        send_all(producer, range(1, 5))
    assert values(broker) == [b"%d" % number for number in range(5)]


LOADER = """
import sys, logbroker
path, total = sys.argv[1], int(sys.argv[2])
with logbroker.open(path) as broker, broker.producer(name="loader", batch_bytes=2000) as producer:
    last = producer.last_sequence("t")
    start = 0 if last is None else last + 1
    print("started", flush=True)
    for number in range(start, total):
        producer.send("t", b"%d" % number, partition=0, sequence=number)
"""


def test_a_loader_that_is_killed_again_and_again_loads_everything_once(broker, tmp_path, rng):
    total = 30_000
    arguments = [sys.executable, "-c", LOADER, str(tmp_path / "data"), str(total)]
    for _ in range(4):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(rng.uniform(0.0, 0.1))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    assert values(broker) == [b"%d" % number for number in range(total)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), max_size=20), max_size=4), st.integers(60, 400))
def test_any_resending_appends_each_sequence_once(tmp_path_factory, runs, batch_bytes):
    with logbroker.open(tmp_path_factory.mktemp("any") / "data") as broker:
        broker.create_topic("t", config={"durability": "os"})
        expected: list[bytes] = []
        last = -1
        for run in runs:
            with broker.producer(name="loader", batch_bytes=batch_bytes, linger=FOREVER) as producer:
                assert producer.last_sequence("t") == (None if last < 0 else last)
                for number in run:
                    producer.send("t", b"%d" % number, partition=0, sequence=number)
                    if number > last:
                        last = number
                        expected.append(b"%d" % number)
        assert values(broker) == expected
