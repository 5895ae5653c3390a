"""Dead letters of a subscription: looked at, and sent back exactly once, whatever dies meanwhile."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import logbroker
from logbroker import Broker
from logbroker.dead_letters import dead_letter_message
from logbroker.errors import (
    InvalidRequestError,
    SubscriptionNotFoundError,
    TopicNotFoundError,
    WriteFailedError,
)
from logbroker_storage.files import OsFiles
from logbroker_storage.record_batch import Record
from logbroker_storage.testing import FaultyFiles

DEADLINE_S = 20.0

DIE_IN_A_REDRIVE = """
import os, sys, logbroker
from logbroker import redrive
from logbroker_storage.files import OsFiles
from logbroker_storage.testing import FaultyFiles
from logbroker_storage.testing.faulty_files import ProcessKilled

class Dying(FaultyFiles):
    def _planned(self, operation, path, *more):
        try:
            return super()._planned(operation, path, *more)
        except ProcessKilled:
            os._exit(9)

files = Dying(OsFiles())
broker = logbroker.open(sys.argv[1], files=files)
redrive.AT_A_TIME = 2
files.kill(at=int(sys.argv[2]))
broker.redrive("workers")
os._exit(0)
"""


def rejected(
    broker: Broker, values: list[bytes], *, topic: str = "jobs", subscription: str = "workers"
) -> None:
    """Have *values* sent, received and rejected, each with itself as the reason."""
    with broker.producer() as producer:
        for value in values:
            producer.send(topic, value, key=b"k-" + value, headers={"type": b"job"})
    with broker.queue(subscription=subscription) as queue:
        while messages := queue.receive_many(100, timeout=0.1):
            for message in messages:
                message.reject(message.value.decode())


@pytest.fixture
def broker(tmp_path: Path):
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("jobs", partitions=2)
        broker.create_subscription("workers", topic="jobs", dead_letter="dead")
        yield broker


def values(broker: Broker, topic: str) -> list[bytes]:
    with broker.consumer(topic) as consumer:
        return [record.value for record in consumer.poll(10_000, timeout=0.2)]


def letters(broker: Broker, **options) -> list[bytes]:
    return [letter.record.value for letter in broker.dead_letters("workers", **options)]


def test_a_dead_letter_says_where_it_came_from_and_why(broker):
    rejected(broker, [b"bad"])
    (letter,) = broker.dead_letters("workers")
    with broker.consumer("jobs") as consumer:
        (record,) = consumer.poll(timeout=DEADLINE_S)
    assert (letter.death.topic, letter.death.partition, letter.death.offset) == ("jobs", record.partition, 0)
    assert (letter.death.reason, letter.death.deliveries, letter.death.by) == ("bad", 1, "workers")
    assert (letter.record.key, letter.record.value, letter.record.headers) == (
        b"k-bad",
        b"bad",
        [("type", b"job")],
    )
    assert letter.place == (0, 0)
    assert not letter.is_redriven


def test_a_letter_goes_back_to_its_topic_and_partition_as_it_was(broker):
    rejected(broker, [b"a", b"b", b"c"])
    before: dict[bytes, logbroker.Record] = {}
    with broker.consumer("jobs") as consumer:
        while len(before) < 3:
            found = consumer.poll(timeout=DEADLINE_S)
            assert found
            before.update((record.value, record) for record in found)
    assert broker.redrive("workers").sent == {"jobs": 3}
    with broker.queue(subscription="workers") as queue:
        again = [message for _ in range(3) for message in queue.receive_many(10, timeout=0.2)]
    assert sorted(message.value for message in again) == [b"a", b"b", b"c"]
    for message in again:
        old = before[message.value]
        assert (message.partition, message.key, message.headers) == (old.partition, old.key, old.headers)
        assert message.delivery_count == 1


def test_what_was_redriven_is_no_longer_listed_nor_counted_nor_redriven_again(broker):
    rejected(broker, [b"a", b"b"])
    assert broker.subscription("workers").dead_letters == 2
    broker.redrive("workers")
    assert letters(broker) == []
    assert broker.subscription("workers").dead_letters == 0
    assert broker.redrive("workers").count == 0
    redriven = list(broker.dead_letters("workers", redriven=True))
    assert [letter.is_redriven for letter in redriven] == [True, True]


def test_a_message_that_dies_again_is_a_letter_again(broker):
    rejected(broker, [b"a"])
    broker.redrive("workers")
    rejected(broker, [])
    (letter,) = broker.dead_letters("workers")
    assert letter.death.offset == 1
    assert broker.redrive("workers").count == 1


def test_some_letters_are_redriven_by_their_places(broker):
    rejected(broker, [b"a", b"b", b"c", b"d"])
    places = {letter.record.value: letter.place for letter in broker.dead_letters("workers")}
    assert broker.redrive("workers", only=[places[b"b"], places[b"d"]]).count == 2
    assert sorted(letters(broker)) == [b"a", b"c"]
    assert broker.redrive("workers", only=[places[b"b"], places[b"a"]]).count == 1, "b was sent before"
    assert letters(broker) == [b"c"]


def test_a_place_that_holds_no_letter_of_the_subscription_is_refused_and_nothing_is_sent(broker):
    broker.create_subscription("others", topic="jobs", dead_letter="dead")
    rejected(broker, [b"a"])
    rejected(broker, [], subscription="others")
    other = next(broker.dead_letters("others")).place
    for wrong in ((0, 99), (7, 0), other):
        mine = next(broker.dead_letters("workers")).place
        with pytest.raises(InvalidRequestError, match="no dead letter"):
            broker.redrive("workers", only=[mine, wrong])
    assert letters(broker) == [b"a"]


@pytest.mark.parametrize("only", [5, "0:1", ["0:1"], [0, 1], [(0, "1")], [{}], [(0, True)]])
def test_letters_are_named_by_partition_and_offset(broker, only):
    with pytest.raises(InvalidRequestError, match="letter"):
        broker.redrive("workers", only=only)


def test_subscriptions_that_share_a_dead_letter_topic_have_letters_of_their_own(broker):
    broker.create_subscription("others", topic="jobs", dead_letter="dead")
    rejected(broker, [b"a", b"b"])
    rejected(broker, [], subscription="others")
    assert broker.redrive("others").count == 2
    assert len(letters(broker)) == 2


def test_letters_follow_their_subscription_when_it_is_renamed(broker):
    rejected(broker, [b"a", b"b"])
    first = next(broker.dead_letters("workers")).place
    broker.redrive("workers", only=[first])
    broker.rename_subscription("workers", "crew")
    broker.create_subscription("workers", topic="jobs", dead_letter="dead")
    assert letters(broker) == []
    assert len(list(broker.dead_letters("crew"))) == 1
    assert broker.redrive("crew").count == 1


def test_a_dry_run_sends_nothing(broker):
    rejected(broker, [b"a", b"b"])
    assert broker.redrive("workers", dry_run=True).sent == {"jobs": 2}
    assert len(letters(broker)) == 2
    assert len(values(broker, "jobs")) == 2


def test_letters_can_be_sent_to_another_topic(broker):
    broker.create_topic("repaired")
    rejected(broker, [b"a", b"b"])
    assert broker.redrive("workers", to="repaired").sent == {"repaired": 2}
    assert sorted(values(broker, "repaired")) == [b"a", b"b"]
    for wrong, error in (("dead", InvalidRequestError), ("nowhere", TopicNotFoundError)):
        with pytest.raises(error):
            broker.redrive("workers", to=wrong)


def test_a_letter_whose_topic_is_gone_is_left_out_with_the_reason(broker):
    broker.create_topic("more")
    broker.create_subscription("all", topic="*o*", dead_letter="dead")
    rejected(broker, [b"a"], subscription="all")
    rejected(broker, [b"b"], topic="more", subscription="all")
    broker.delete_topic("more")
    result = broker.redrive("all")
    assert result.sent == {"jobs": 1}
    ((_, _, why),) = result.left_out
    assert "'more' is not there" in why
    assert [letter.record.value for letter in broker.dead_letters("all")] == [b"b"]


def test_a_letter_of_a_partition_that_is_no_more_goes_where_its_key_belongs(broker):
    rejected(broker, [b"a", b"b", b"c", b"d"])
    broker.delete_topic("jobs")
    broker.create_topic("jobs", partitions=1)
    assert broker.redrive("workers").count == 4
    assert sorted(values(broker, "jobs")) == [b"a", b"b", b"c", b"d"]


def test_a_message_that_could_not_be_read_is_not_sent_as_an_empty_one(broker):
    lost = Record(topic="jobs", partition=0, offset=0, timestamp_ms=-1, key=None, value=None)
    letter = dead_letter_message(lost, reason="damaged", error="offsets 0 to 0 cannot be read", by="workers")
    broker.create_topic("dead", exist_ok=True)
    with broker.producer() as producer:
        producer.send_many("dead", [letter])
    result = broker.redrive("workers")
    assert result.left_out == [(0, 0, "offsets 0 to 0 cannot be read")]
    assert result.count == 0
    assert len(letters(broker)) == 1


def test_an_old_message_is_a_young_dead_letter(broker):
    """Or the retention of the dead letter topic would take it at once."""
    with broker.producer() as producer:
        producer.send("jobs", b"old", timestamp=1_000_000_000_000)
    rejected(broker, [])
    (letter,) = broker.dead_letters("workers")
    assert letter.death.timestamp_ms == 1_000_000_000_000
    assert time.time() * 1000 - letter.record.timestamp_ms < 60_000


def test_a_subscription_without_dead_letters_has_none_and_none_to_redrive(broker):
    broker.create_subscription("plain", topic="jobs")
    assert list(broker.dead_letters("plain")) == []
    with pytest.raises(InvalidRequestError, match="dead_letter="):
        broker.redrive("plain")
    with pytest.raises(SubscriptionNotFoundError):
        broker.dead_letters("nobody")


def test_letters_of_many_blocks_are_redriven_once(broker):
    count = 2500
    with broker.producer() as producer:
        producer.send_many("jobs", [b"%d" % number for number in range(count)])
    with broker.queue(subscription="workers") as queue:
        while messages := queue.receive_many(1000, timeout=0.1):
            messages.reject()
    odd = [letter.place for letter in broker.dead_letters("workers")][1::2]
    assert broker.redrive("workers", only=odd).count == count // 2
    assert broker.redrive("workers").count == count // 2
    assert broker.redrive("workers").count == 0
    assert Counter(Counter(values(broker, "jobs")).values()) == {2: count}


def test_what_a_deleted_dead_letter_topic_knew_is_forgotten_with_it(broker):
    rejected(broker, [b"a"])
    broker.redrive("workers")
    broker.delete_topic("dead")
    assert letters(broker) == []
    broker.create_topic("dead")
    rejected(broker, [])
    assert letters(broker) == [b"a"]


def test_two_that_redrive_at_a_time_send_nothing_twice(broker, tmp_path):
    rejected(broker, [b"%d" % number for number in range(40)])
    with logbroker.open(tmp_path / "data") as other:
        counts: list[int] = []
        threads = [
            threading.Thread(target=lambda handle=handle: counts.append(handle.redrive("workers").count))
            for handle in (broker, other, broker, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(counts) == 40
    assert set(Counter(values(broker, "jobs")).values()) == {2}


def test_a_redrive_that_cannot_write_sends_nothing_and_can_be_repeated(tmp_path):
    files = FaultyFiles(OsFiles())
    with logbroker.open(tmp_path / "data", files=files) as broker:
        broker.create_topic("jobs")
        broker.create_subscription("workers", topic="jobs", dead_letter="dead")
        rejected(broker, [b"a", b"b"])
        files.fail("pwrite", path="jobs-0/00000000000000000000.log", error=errno.ENOSPC, forever=True)
        with pytest.raises(WriteFailedError):
            broker.redrive("workers")
        files.heal()
        assert len(letters(broker)) == 2
        assert broker.redrive("workers").count == 2
        assert sorted(values(broker, "jobs")) == [b"a", b"a", b"b", b"b"]


@pytest.mark.slow
def test_killed_at_any_file_operation_no_letter_is_lost_or_redriven_twice(tmp_path, rng, long_run):
    """Six letters, two a transaction; the process dies at one of its operations, then at a later one …

    In the long form at each.
    """
    died = 0
    step = 1 if long_run else 4
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("jobs")
        broker.create_subscription("workers", topic="jobs", dead_letter="dead")
    sent: Counter[bytes] = Counter()
    for at in range(1 if long_run else rng.randint(1, step), 1000, step):
        new = [b"%d-%d" % (at, number) for number in range(6)]
        with logbroker.open(tmp_path / "data") as broker:
            rejected(broker, new)
        command = [sys.executable, "-c", DIE_IN_A_REDRIVE, str(tmp_path / "data"), str(at)]
        code = subprocess.run(command, check=False).returncode
        assert code in (0, 9)
        with logbroker.open(tmp_path / "data") as broker:
            broker.redrive("workers")
            assert letters(broker) == []
            with broker.queue(subscription="workers") as queue:
                while messages := queue.receive_many(100, timeout=0.0):
                    sent.update(message.value for message in messages)
                    messages.accept()
        assert all(sent[value] == 1 for value in new), at
        if code == 0:
            break
        died += 1
    assert died > 30 // step
    assert set(sent.values()) == {1}
