"""The scripted runs: everything that writes, through the public library, on topics that are small enough to roll.

Each story is a function of a process that has the directory open (``opening`` and ``making`` begin without).
It goes on after each call that fails, as a program does that logs and tries the next thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import logbroker
from logbroker_storage import journal as journal_module
from logbroker_storage.testing import ManualClock

from .account import Account, Told
from .process import Answer, Process

NOON_MS = 1_700_000_000_000
JOBS = 6
SMALL = {"segment.bytes": 700, "index.interval.bytes": 100}


def prepare(path: str) -> Account:
    """A directory with a topic of each kind; what is in it."""
    account = Account()
    clock = ManualClock(NOON_MS)
    with logbroker.open(path, clock=clock) as broker:
        broker.create_topic("plain", config=SMALL)
        broker.create_topic("other", 2, config=SMALL)
        broker.create_topic("os", config={**SMALL, "durability": "os"})
        broker.create_topic("unique", config=SMALL)
        broker.create_topic(
            "kept", config={**SMALL, "cleanup.policy": "compact", "min.cleanable.dirty.ratio": 0.0}
        )
        broker.create_topic("old", config={**SMALL, "retention.ms": 3_600_000})
        broker.create_topic("doomed", 2)
        broker.create_topic("jobs")
        broker.create_topic("jobs.dead")
        broker.create_subscription("workers", topic="jobs", dead_letter="jobs.dead", lease=1000.0)
        with broker.producer() as producer:
            for topic in ("plain", "other", "os", "unique", "doomed"):
                for number in range(4):
                    value = b"prepared %d" % number
                    producer.send(topic, value, partition=0).result()
                    account.add(topic, value, Told.DONE)
            for number in range(JOBS):
                value = b"job %d" % number
                producer.send("jobs", value).result()
                account.add("jobs", value, Told.DONE)
            for number in range(12):
                value = b"kept %02d" % number * 10
                key = b"%d" % (number % 3)
                producer.send("kept", value, key=key).result()
                account.add("kept", value, Told.DONE, key=key)
            for number in range(12):
                value = b"old %02d" % number * 10
                producer.send("old", value).result()
                account.add("old", value, Told.DONE)
                account.aged.add(value)
        with broker.consumer("plain", group="readers", delivery="manual") as consumer:
            consumer.poll(2)
            consumer.commit()
        account.offsets["readers"] = {2}
    return account


def producing(process: Process) -> None:
    producer = process.producer()
    for number in range(8):
        process.send(producer, "plain", b"produced %d " % number * 12)
    process.send(producer, "other", b"produced", partition=1)
    if producer is not None:
        process.attempt(producer.close)


def producing_weakly(process: Process) -> None:
    producer = process.producer()
    for number in range(6):
        process.send(producer, "os", b"produced %d " % number * 12)
    if producer is not None:
        process.attempt(producer.close)


def producing_once(process: Process) -> None:
    """With message ids, each sent twice: as somebody does who was not told that the first came through."""
    producer = process.producer()
    for number in range(3):
        value = b"unique %d" % number
        first = process.send(producer, "unique", value, message_id=str(number))
        if producer is None:
            continue
        if first.told is Told.DONE:
            process.attempt(partial(producer.send, "unique", value, message_id=str(number)))
            continue
        sent = process.account.records["unique"]
        sent.pop()
        again = process.send(producer, "unique", value, message_id=str(number))
        if again.told is Told.REFUSED and first.told is Told.UNKNOWN:
            sent[-1] = (value, Told.UNKNOWN)  # the first may be there
    if producer is not None:
        process.attempt(producer.close)


def producing_by_name(process: Process) -> None:
    producer = process.producer(name="ingest")
    for number in range(3):
        process.send(producer, "plain", b"named %d" % number, sequence=number + 1)
    if producer is not None:
        process.attempt(producer.close)


def transacting(process: Process) -> None:
    process.transaction([("plain", b"first a"), ("os", b"first b")])
    process.transaction([("plain", b"aborted a"), ("other", b"aborted b")], commits=False)
    process.transaction([("other", b"third a" * 40), ("plain", b"third b" * 40)])


def consuming(process: Process) -> None:
    answer = process.attempt(lambda: process.broker.consumer("plain", group="readers", delivery="manual"))
    consumer = process.result
    if answer.error is not None:
        return
    process.attempt(lambda: consumer.poll(1, timeout=0))
    records = process.result or []
    assert [record.value for record in records] in ([], [b"prepared 2"]), records
    if records:
        answer = process.attempt(consumer.commit)
        _may_be_at(process, "readers", 3, answer)
    process.attempt(consumer.close)


def _may_be_at(process: Process, group: str, offset: int, answer: Answer) -> None:
    offsets = process.account.offsets
    if answer.told is Told.DONE:
        offsets[group] = {offset}
    else:
        offsets[group] = {*offsets.get(group, {None}), offset}


def working(process: Process) -> None:
    """A queue: accepted, rejected, released, and two in a batch."""
    answer = process.attempt(lambda: process.broker.queue(subscription="workers"))
    queue = process.result
    if answer.error is not None:
        return
    process.attempt(lambda: queue.receive_many(JOBS - 1))
    messages = process.result or []
    fates = process.account.messages
    for message, settle, fate in zip(
        messages, ("accept", "reject", "release"), ("done", "dead", "left"), strict=False
    ):
        answer = process.attempt(getattr(message, settle))
        fates[message.value] = {fate} if answer.told is Told.DONE else {"left", fate}
        if answer.told is Told.REFUSED:
            fates[message.value] = {"left"}
    if len(messages) > 4:
        answer = process.attempt(lambda: queue.accept(messages[3:5]))
        for message in messages[3:5]:
            fates[message.value] = {Told.DONE: {"done"}, Told.REFUSED: {"left"}}.get(
                answer.told, {"left", "done"}
            )
    process.attempt(queue.close)


def changing_topics(process: Process) -> None:
    broker, topics = process.broker, process.account.topics

    def told(name: str, answer: Answer, *, made: bool) -> None:
        topics[name] = {Told.DONE: {made}, Told.REFUSED: {not made}}.get(answer.told, {True, False})

    told("made", process.attempt(lambda: broker.create_topic("made", 2)), made=True)
    told("doomed", process.attempt(lambda: broker.delete_topic("doomed")), made=False)
    process.attempt(lambda: broker.alter_topic("plain", config={"segment.bytes": 800}))
    process.attempt(lambda: broker.alter_topic("other", partitions=3))
    process.attempt(lambda: broker.delete_records("old", {0: 3}))


def cleaning(process: Process) -> None:
    """The cleaner reports to nobody but the log; what it must not do is to lose anything."""
    process.clock.advance(ms=7_200_000)
    process.attempt(process.directory().maintenance.clean)


def compacting_the_journal(process: Process) -> None:
    before = journal_module.COMPACT_FROM_BYTES, journal_module.COMPACT_GROWTH
    journal_module.COMPACT_FROM_BYTES = journal_module.COMPACT_GROWTH = 0
    try:
        for name in ("first", "second"):
            answer = process.attempt(partial(process.broker.create_subscription, name, topic="plain"))
            assert answer.error is None or name not in process.account.topics
    finally:
        journal_module.COMPACT_FROM_BYTES, journal_module.COMPACT_GROWTH = before


def reading(process: Process) -> None:
    answer = process.attempt(lambda: process.broker.consumer(["plain", "other"]))
    consumer = process.result
    if answer.error is not None:
        return
    for _ in range(3):
        process.attempt(consumer.poll)
        for record in process.result or []:
            assert record.value.startswith(b"prepared"), record
    process.attempt(consumer.close)
    for topic in ("plain", "other"):
        process.attempt(partial(process.broker.topic, topic))


def checkpointing(process: Process) -> None:
    producing_weakly(process)
    process.attempt(process.directory().checkpoint)


def closing(process: Process) -> None:
    producer = process.producer()
    process.send(producer, "plain", b"before the end")
    process.send(producer, "os", b"before the end")
    if producer is not None:
        process.attempt(producer.close)
    broker, process.broker = process.broker, None
    process.attempt(broker.close)


def opening(process: Process) -> None:
    process.open()


@dataclass(frozen=True)
class Story:
    tell: Callable[[Process], None]
    begins_open: bool = True
    without_view: bool = False

    @property
    def name(self) -> str:
        return self.tell.__name__.replace("_", " ") + (" without a view" if self.without_view else "")


STORIES = [
    Story(producing),
    Story(producing_weakly),
    Story(producing_once),
    Story(producing_by_name),
    Story(transacting),
    Story(consuming),
    Story(working),
    Story(changing_topics),
    Story(cleaning),
    Story(compacting_the_journal),
    Story(reading),
    Story(checkpointing),
    Story(closing),
    Story(opening, begins_open=False),
    Story(opening, begins_open=False, without_view=True),
]
