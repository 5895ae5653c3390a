"""What the workers do until they are killed, and what they note of it (see ``diary``).

    role     does                                            notes
    write    numbered records to ``t`` and ``jobs``,         acked TOPIC PARTITION NAME NUMBER OFFSET
             from where the log says it stopped
    key      the same to the compacted topic ``c``           acked c 0 NAME NUMBER OFFSET
    read     polls ``t`` as a member of the group            polled BEFORE AFTER PARTITION FIRST END
             ``readers``
    work     receives from the queue ``workers``, and        received BEFORE AFTER PARTITION OFFSET
             accepts, releases or rejects                    settling BEFORE PARTITION OFFSET
                                                             accepted | rejected | released | lost AFTER PARTITION
                                                             OFFSET
    pay      the same of the queue ``payers``, where         the same
             accepting is part of a transaction with a
             record in ``left`` and one in ``right``
    enrich   transforms ``jobs`` into ``out``, counting      derived AFTER
             in the state
    clean    runs the cleaner                                cleaned AFTER
    make     makes topics, writes to them, deletes them      making | made | deleting | deleted TOPIC
                                                             wrote TOPIC COUNT
    visit    opens the directory, writes to ``t``, closes    acked TOPIC PARTITION NAME NUMBER OFFSET
             it, over and over
    open     opens the directory and closes it               opened

A note is written when the call that it is about has returned, but for ``settling``, ``making`` and ``deleting``,
which come before. BEFORE and AFTER are moments of ``time.monotonic``, which all processes share. A worker that was
given a number of rounds leaves cleanly after these, and notes ``left`` when everything is closed.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial

import msgspec

import logbroker
from logbroker.broker import Broker
from logbroker.producer import Producer
from logbroker.queues.consumer import Queue, QueueMessage
from logbroker.records import Message, Record
from logbroker.transaction import Transaction
from logbroker.transaction_state import TransactionState

from .diary import Diary
from .values import read_value, value_of

LEASE_S = 0.5
KEYS = 40
TOMBSTONE_EVERY = 11
ACK_S = 60.0  # a worker that waits longer for an acknowledgement fails: somebody holds it up for ever

# Records of one round of a writer in one partition; those of ``jobs`` cost their three readers more.
BURSTS = {"t": (1, 2, 8, 30), "jobs": (0, 0, 0, 0, 1, 2)}
PARTITIONS = {"t": 3, "jobs": 2, "out": 2, "left": 1, "right": 1, "c": 1}


class Life(msgspec.Struct):
    """What a worker is to be."""

    role: str
    slot: int
    """Workers of one role and slot are never alive together: the next carries on what the last began."""
    number: int
    seed: int
    data: str
    diary: str
    errors: str
    rounds: int | None = None
    """After how many it leaves; None: when it is killed."""

    def loop(self) -> Iterable[int]:
        return itertools.count() if self.rounds is None else range(self.rounds)


def live(life: Life) -> None:
    diary = Diary(life.diary)
    rng = random.Random(life.seed)
    if life.role == "visit":
        for _ in life.loop():
            visit(life, diary, rng)
    else:
        with logbroker.open(life.data) as broker:
            ROLES[life.role](life, broker, diary, rng)
    diary.note("left")


# Writing ----------------------------------------------------------------------------------------------------


def write(life: Life, broker: Broker, diary: Diary, rng: random.Random) -> None:
    name = f"w{life.slot}"
    places = [(topic, number) for topic in ("t", "jobs") for number in range(PARTITIONS[topic])]
    with broker.producer(
        name=name, linger=rng.choice([0, 0.001]), compression=rng.choice([None, "lz4"])
    ) as producer:
        following = {place: _following(producer, *place) for place in places}
        for _ in life.loop():
            sent = []
            for topic, partition in rng.sample(places, rng.randint(1, len(places))):
                for _ in range(rng.choice(BURSTS[topic])):
                    number = following[topic, partition]
                    value = value_of(name, number)
                    receipt = producer.send(topic, value, partition=partition, sequence=number)
                    sent.append((topic, partition, number, receipt))
                    following[topic, partition] += 1
            diary.note(
                *(
                    f"acked {topic} {partition} {name} {number} {receipt.result(ACK_S).offset}"
                    for topic, partition, number, receipt in sent
                )
            )


def visit(life: Life, diary: Diary, rng: random.Random) -> None:
    name, partition = f"v{life.slot}", rng.randrange(PARTITIONS["t"])
    with logbroker.open(life.data) as broker, broker.producer(name=name, linger=0) as producer:
        number = _following(producer, "t", partition)
        receipt = producer.send("t", value_of(name, number), partition=partition, sequence=number)
        diary.note(f"acked t {partition} {name} {number} {receipt.result(ACK_S).offset}")


def _following(producer: Producer, topic: str, partition: int) -> int:
    last = producer.last_sequence(topic, partition=partition)
    return 0 if last is None else last + 1


def key(life: Life, broker: Broker, diary: Diary, rng: random.Random) -> None:
    """The values are the numbers; a deletion has its number in a header."""
    with broker.producer(name="keyed", linger=0.001) as producer:
        number = _following(producer, "c", 0)
        for _ in life.loop():
            for _ in range(rng.choice((1, 10, 60))):
                receipt = producer.send(
                    "c",
                    None if is_tombstone(number) else b"%d" % number,
                    b"key-%d" % (number % KEYS),
                    {"number": b"%d" % number},
                    partition=0,
                    sequence=number,
                )
                number += 1
            diary.note(f"acked c 0 keyed {number - 1} {receipt.result(ACK_S).offset}")


def is_tombstone(number: int) -> bool:
    return number % TOMBSTONE_EVERY == 0


# Reading ----------------------------------------------------------------------------------------------------


def read(life: Life, broker: Broker, diary: Diary, rng: random.Random) -> None:
    run = Run()
    with broker.consumer("t", group="readers") as consumer:
        for _ in life.loop():
            before = time.monotonic()
            records = consumer.poll(rng.choice((1, 50, 500)), 0.2)
            after = time.monotonic()
            if records:
                diary.note(
                    *(
                        f"polled {before} {after} {partition} {first} {end}"
                        for partition, first, end in run.of(records)
                    )
                )


class Run:
    """What one consumer was handed so far: offsets without a gap, each writer's numbers without a gap."""

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._following: dict[tuple[int, str], int] = {}

    def of(self, records: Iterable[Record]) -> list[tuple[int, int, int]]:
        """The stretch [first, end) of each partition in one poll."""
        polled: dict[int, tuple[int, int]] = {}
        for record in records:
            partition, offset = record.partition, record.offset
            name, number = read_value(record.value)
            if offset != self._ends.get(partition):  # another member had it meanwhile
                assert partition not in polled, f"one poll of partition {partition} jumps to {offset}"
                self._following = {
                    place: following for place, following in self._following.items() if place[0] != partition
                }
            expected = self._following.get((partition, name), number)
            assert number == expected, f"{name}: {number} instead of {expected} at {partition}@{offset}"
            self._following[partition, name] = number + 1
            self._ends[partition] = offset + 1
            polled[partition] = (polled.get(partition, (offset, 0))[0], offset + 1)
        return [(partition, first, end) for partition, (first, end) in polled.items()]


# Queues -----------------------------------------------------------------------------------------------------


Settling = Callable[[list[QueueMessage]], None]


class Hands:
    """A worker of a queue, and what it notes of its messages."""

    def __init__(self, queue: Queue, diary: Diary, rng: random.Random) -> None:
        self._queue = queue
        self._diary = diary
        self._rng = rng

    def receive(self, limit: int) -> list[QueueMessage]:
        before = time.monotonic()
        messages = self._queue.receive_many(self._rng.randint(1, limit), 0.2)
        after = time.monotonic()
        for message in messages:
            read_value(message.value)
        places = {_place(message) for message in messages}
        assert len(places) == len(messages), f"twice in one batch: {messages}"
        if messages:
            self._diary.note(*(f"received {before} {after} {_place(message)}" for message in messages))
        return list(messages)

    def settle(self, messages: list[QueueMessage], how: str, action: Settling) -> None:
        """Let *action* settle *messages*, and note what becomes of them; what it finds lost is noted as that."""
        if not messages:
            return
        before = time.monotonic()
        self._diary.note(*(f"settling {before} {_place(message)}" for message in messages))
        lost: set[tuple[int, int]] = set()
        try:
            action(messages)
        except logbroker.LeaseLostError as error:
            lost = {
                (partition, offset)
                for _, partition, first, last in error.lost
                for offset in range(first, last + 1)
            }
        after = time.monotonic()
        self._diary.note(
            *(
                f"{'lost' if (message.partition, message.offset) in lost else how} {after} {_place(message)}"
                for message in messages
            )
        )


def _place(message: QueueMessage) -> str:
    return f"{message.partition} {message.offset}"


def work(life: Life, broker: Broker, diary: Diary, rng: random.Random) -> None:
    with broker.queue(subscription="workers") as queue:
        hands = Hands(queue, diary, rng)
        for _ in life.loop():
            messages = hands.receive(20)
            rng.shuffle(messages)
            cut = rng.randint(0, len(messages)) if rng.random() < 0.2 else len(messages)
            if rng.random() < 0.5:
                hands.settle(messages[:cut], "accepted", queue.accept)
            else:
                for message in messages[:cut]:
                    hands.settle([message], "accepted", lambda one: one[0].accept())
            if rng.random() < 0.1:
                hands.settle(messages[cut:], "rejected", queue.reject)
            else:
                hands.settle(messages[cut:], "released", queue.release)


def pay(life: Life, broker: Broker, diary: Diary, rng: random.Random) -> None:
    with broker.queue(subscription="payers") as queue:
        hands = Hands(queue, diary, rng)
        for _ in life.loop():
            messages = hands.receive(8)
            if not messages:
                continue
            tx = broker.transaction(f"payer-{life.slot}")
            for message in messages:
                for topic in ("left", "right"):
                    tx.send(topic, b"%d:%d" % (message.partition, message.offset))
            if rng.random() < 0.1:
                tx.abort()
                hands.settle(messages, "released", queue.release)
            else:
                tx.accept(messages)
                hands.settle(messages, "accepted", partial(_commit, tx, queue))


def _commit(tx: Transaction, queue: Queue, messages: list[QueueMessage]) -> None:
    try:
        tx.commit()
    except logbroker.LeaseLostError as error:  # of some: nothing was committed, and the others are given back
        queue.give_back(messages)
        lost = [(message.topic, message.partition, message.offset, message.offset) for message in messages]
        raise logbroker.LeaseLostError(lost) from error


# Transforming, cleaning, making -------------------------------------------------------------------------------


def enrich(life: Life, broker: Broker, diary: Diary, rng: random.Random) -> None:
    stop = threading.Event()
    rounds = iter(life.loop())

    def count(record: Record, state: TransactionState) -> Message:
        found = int(state.get(b"count", b"0") or 0)
        assert found == record.offset, f"{found} counted below {record.partition}@{record.offset}"
        state.put(b"count", b"%d" % (found + 1))
        diary.note(f"derived {time.monotonic()}")
        if next(rounds, None) is None:
            stop.set()
        return Message(b"%d:%d" % (record.partition, record.offset), b"%d" % record.partition)

    broker.transform(
        "jobs", "out", group="enrichers", function=count, stop=stop, max_records=rng.choice((2, 100))
    )


def clean(life: Life, broker: Broker, diary: Diary, rng: random.Random) -> None:
    for _ in life.loop():
        if broker.clean():
            diary.note(f"cleaned {time.monotonic()}")
        time.sleep(rng.uniform(0, 0.02))


def make(life: Life, broker: Broker, diary: Diary, rng: random.Random) -> None:
    for number in life.loop():
        topic = f"made-{life.number}-{number}"
        diary.note(f"making {topic}")
        broker.create_topic(topic, partitions=rng.randint(1, 2))
        diary.note(f"made {topic}")
        count = rng.randint(0, 20)
        with broker.producer() as producer:
            producer.send_many(topic, [b"%d" % n for n in range(count)], partition=0)
        diary.note(f"wrote {topic} {count}")
        time.sleep(rng.uniform(0, 0.01))
        diary.note(f"deleting {topic}")
        broker.delete_topic(topic)
        diary.note(f"deleted {topic}")


def open_and_close(life: Life, broker: Broker, diary: Diary, rng: random.Random) -> None:
    diary.note("opened")


ROLES: dict[str, Callable[[Life, Broker, Diary, random.Random], None]] = {
    "write": write,
    "key": key,
    "read": read,
    "work": work,
    "pay": pay,
    "enrich": enrich,
    "clean": clean,
    "make": make,
    "open": open_and_close,
}
