"""One process of the soak: ``python -m tests.proof.soak.worker ROLE DATA PAUSE LIFE ADDRESS``.

It does one turn of its role after the other, PAUSE seconds apart, and after LIFE turns closes all that it uses and
begins a new life, as processes that are deployed again do. ADDRESS is the server's. It says ``ready`` after its first
turn, ends when its standard input does, and says then how many turns it did.
"""

from __future__ import annotations

import datetime
import itertools
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import logbroker

from .topics import PARTITIONS, TOPICS

BACKLOG = 500  # jobs

Turns = Iterator[None]


def produce(broker: logbroker.Broker, rng: random.Random, life: int) -> Turns:
    """A named producer, which keeps its producer id from life to life."""
    for number in itertools.count():
        codec = rng.choice([None, "lz4", "zstd"])
        with broker.producer(name="loader", compression=codec) as producer:
            for _ in range(life):
                for each in range(60):
                    value = rng.randbytes(rng.randrange(100, 200))
                    producer.send("orders", value, partition=each % PARTITIONS)
                    producer.send("prices", b"%d" % number, key=b"%d" % rng.randrange(100))
                yield


def supply(broker: logbroker.Broker, rng: random.Random, life: int) -> Turns:
    """Jobs for the queue, each sent twice under one id; some later, some soon out of date, some first."""
    second = datetime.timedelta(seconds=1)
    sent = itertools.count()
    with broker.producer() as producer:
        while True:
            # A backlog would be growth of its own, wherever this machine is too busy for the queue's consumers.
            is_behind = broker.subscription("workers").lag > BACKLOG
            for _ in range(0 if is_behind else 20):
                options: Any = rng.choice(
                    [{}, {"delay": second}, {"ttl": second}, {"priority": rng.randrange(10)}]
                )
                name = f"{os.getpid()}-{next(sent)}"
                for _ in range(2):
                    producer.send("jobs", rng.randbytes(100), message_id=name, **options)
            yield


def read(broker: logbroker.Broker, rng: random.Random, life: int) -> Turns:
    """A member of a group, which leaves and joins again."""
    while True:
        with broker.consumer("orders", group="readers") as consumer:
            for _ in range(rng.randrange(1, 2 * life)):
                poll(consumer, 500, 0.1)
                yield


def tail(broker: logbroker.Broker, rng: random.Random, life: int) -> Turns:
    """Readers without a group: of everything that is there, then of what comes."""
    while True:
        with broker.consumer(["orders", "copies", "prices"]) as everything:
            poll(everything, 2000, 0.1)
            yield
        with broker.consumer("*", start="latest") as consumer:
            for _ in range(life):
                poll(consumer, 500, 0.1)
                yield


def copy(broker: logbroker.Broker, rng: random.Random, life: int) -> Turns:
    """Transactions from input to output, some of them aborted."""
    while True:
        with broker.consumer("orders", group="copier", delivery="manual") as consumer:
            for _ in range(life):
                records = poll(consumer, 200, 0.1)
                tx = broker.transaction("copier")
                for record in records:
                    tx.send("copies", record.value, key=record.key)
                    tx.state.put(b"%d" % rng.randrange(100), record.value or b"")
                if rng.random() < 0.1:
                    tx.abort()
                    consumer.return_to_committed()
                else:
                    tx.commit_offsets(consumer)
                    tx.commit()
                yield


def work(broker: logbroker.Broker, rng: random.Random, life: int) -> Turns:
    """A consumer of the queue, which accepts most, and gives back or rejects some."""
    while True:
        with broker.queue(subscription="workers") as queue:
            for _ in range(life):
                batch = queue.receive_many(50, 0.1)
                fates = [rng.choices(["accept", "release", "reject"], [20, 2, 1])[0] for _ in batch]
                for fate, settle in (
                    ("accept", queue.accept),
                    ("release", queue.release),
                    ("reject", queue.reject),
                ):
                    chosen = [message for message, its in zip(batch, fates, strict=True) if its == fate]
                    if chosen:
                        _settle(settle, chosen)
                yield


def poll(consumer: logbroker.Consumer, count: int, timeout_s: float) -> list[logbroker.Record]:
    """The next records; where retention was faster than this reader, those that are left."""
    try:
        return consumer.poll(count, timeout_s)
    except logbroker.OffsetOutOfRangeError as error:
        consumer.seek((error.topic, error.partition), error.start_offset)
        return []


def _settle(
    settle: Callable[[list[logbroker.QueueMessage]], None], messages: list[logbroker.QueueMessage]
) -> None:
    try:
        settle(messages)
    except logbroker.LeaseLostError:
        pass  # this machine was busy for longer than a lease; somebody else has them


def administer(broker: logbroker.Broker, rng: random.Random, life: int) -> Turns:
    """What comes and goes: topics, groups, subscriptions, bindings, transactional ids' state; and the cleaner."""
    while True:
        name = f"passing-{rng.randrange(10)}"
        broker.create_topic(name, partitions=2)
        broker.create_subscription(name, topic=name)
        broker.bind("orders", name, name=name, dead_letter="routed.dead")
        with broker.producer(name="passer") as producer:
            producer.send_many(name, [b"%d" % number for number in range(20)])
        with broker.consumer(name, group=f"group-{name}") as consumer:
            poll(consumer, 10, 0.1)
        with broker.queue(subscription=name) as queue:
            queue.receive_many(5, 0.1).accept()
        yield
        broker.unbind(name)
        broker.delete_subscription(name)
        broker.delete_group(f"group-{name}")
        broker.delete_topic(name)
        broker.clean()
        yield


def ask(broker: logbroker.Broker, rng: random.Random, life: int) -> Turns:
    """Requests and replies; each life has a reply topic of its own, and an anonymous producer."""
    del broker  # reply topics are of a broker object
    while True:
        with logbroker.open(sys.argv[2]) as own:
            responder = own.responder("rpc")(lambda request: request.value)
            for _ in range(10 * life):
                own.request("rpc", rng.randbytes(100), timeout=30)
                yield
            responder.stop()


def die(data: str, rng: random.Random) -> Turns:
    """Children that open the directory, use everything at once, and are killed over it."""
    while True:
        child = os.fork()
        if child == 0:
            broker = logbroker.open(data)
            consumer, queue = broker.consumer("orders", group="readers"), broker.queue(subscription="workers")
            transaction = broker.transaction("dying")
            transaction.send("copies", b"of one who died")
            queue.receive_many(10)
            poll(consumer, 100, 0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WTERMSIG(status) != signal.SIGKILL:
            raise RuntimeError(f"the child ended by itself, with status {status}")
        yield


def connect(address: str, rng: random.Random, life: int) -> Turns:
    """Kafka clients that connect, produce, consume in a group and leave."""
    import confluent_kafka

    settings: dict[str, Any] = {"bootstrap.servers": address, "log_level": 0}
    consuming = {"group.id": "clients", "auto.offset.reset": "earliest"}
    while True:
        producer = confluent_kafka.Producer(settings | {"transactional.id": "client"})
        producer.init_transactions(30)
        consumer = confluent_kafka.Consumer(settings | consuming)
        consumer.subscribe(["net"])
        for _ in range(life):
            producer.begin_transaction()
            for number in range(50):
                producer.produce("net", rng.randbytes(100), partition=number % PARTITIONS)
            producer.commit_transaction(30)
            consumer.consume(200, 0.2)
            yield
        consumer.close()


ROLES: dict[str, Callable[[logbroker.Broker, random.Random, int], Turns]] = {
    role.__name__: role for role in (produce, supply, read, tail, copy, work, administer, ask)
}


def main() -> None:
    role, data, pause_s, life, address = sys.argv[1:]
    rng = random.Random(f"{role} {os.getpid()}")
    if role == "die":
        take_turns(die(data, rng), float(pause_s))
    elif role == "connect":
        take_turns(connect(address, rng, int(life)), float(pause_s))
    else:
        with logbroker.open(data) as broker:
            warm_up(broker)
            take_turns(ROLES[role](broker, rng, int(life)), float(pause_s))


def warm_up(broker: logbroker.Broker) -> None:
    """Open the files of every log, as each process does sooner or later, when it has something to clean there."""
    with broker.producer() as producer:
        for topic, partitions in TOPICS.items():
            for number in range(partitions):
                producer.send(topic, b"warm", key=b"warm", partition=number)


def take_turns(turns: Turns, pause_s: float) -> None:
    stopping = threading.Event()

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would be held at the interpreter's end
            pass
        stopping.set()

    next(turns)
    print("ready", flush=True)
    threading.Thread(target=watch, daemon=True).start()
    done = 1
    while not stopping.wait(pause_s):
        next(turns)
        done += 1
    turns.close()  # type: ignore[attr-defined]
    print(done, flush=True)


if __name__ == "__main__":
    main()
