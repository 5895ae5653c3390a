"""A wall clock that jumps by an hour, forward or back, at each step of a scripted run.

runs on monotonic time    leases, members of groups, embedded or of a server, transactions, waiting for records:
                          a jump ends none, and prolongs none
runs on wall time         timestamps of records, retention by age: a jump of less than retention.ms removes
                          nothing that was written within it
                          times to live, delays: what is due, or over, at a moment is so when the clock says that it is
                          that moment. A jump ahead brings that on by as much, one back puts it off by as much;
                          nothing is lost, and a clock that is set right again makes it as it was, but for what a
                          queue has found to be over meanwhile
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator

from confluent_kafka import Consumer, Producer, TopicPartition

import logbroker
from logbroker.transaction_coordinator import TransactionCoordinator
from logbroker_storage.clock import SystemClock
from logbroker_storage.files import OsFiles
from logbroker_storage.log_config import LogConfig
from logbroker_storage.testing import ManualClock

from ..history.client import CLIENT
from ..proof import Row, Scope, delete_folder, new_folder
from .server_thread import ServerThread
from .stories import NOON_MS, SMALL

HOUR_MS = 3_600_000
RETENTION_MS = 2 * HOUR_MS
JUMPS_MS = (-HOUR_MS, HOUR_MS)
HALF_AN_HOUR = datetime.timedelta(minutes=30)
TWO_HOURS = datetime.timedelta(hours=2)
PATIENCE_S = 60.0
STEPS = 6


def run(scope: Scope) -> Iterator[Row]:
    for name, jump_ms in (("late", -HOUR_MS), ("early", HOUR_MS)):
        for at in range(STEPS):
            folder = new_folder(in_memory=True)
            try:
                _try(f"{folder}/data", at, jump_ms)
            finally:
                delete_folder(folder)
        yield Row(f"a wall clock that is suddenly an hour {name}", STEPS, "steps")
    folder = new_folder(in_memory=True)
    try:
        for number, jump_ms in enumerate(JUMPS_MS):
            _times_to_live(f"{folder}/ttl {number}", jump_ms)
            _delays(f"{folder}/delays {number}", jump_ms)
            _transactions(f"{folder}/transactions {number}", jump_ms)
            _server(f"{folder}/server {number}", jump_ms)
            _dead_member(f"{folder}/dead {number}", jump_ms)
    finally:
        delete_folder(folder)
    yield Row("the same: times to live, delays, transactions, a server's clients", 5 * len(JUMPS_MS), "jumps")


def _try(path: str, at: int, jump_ms: int) -> None:
    clock = ManualClock(NOON_MS)
    sent: list[bytes] = []
    with logbroker.open(path, clock=clock) as broker:
        broker.create_topic("plain", config={**SMALL, "retention.ms": RETENTION_MS})
        broker.create_subscription("workers", topic="plain", lease=30.0)
        with (
            broker.producer() as producer,
            broker.queue(subscription="workers") as queue,
            broker.queue(subscription="workers") as other,
            broker.consumer("plain", group="readers", delivery="manual") as consumer,
        ):

            def send() -> None:
                for _ in range(6):
                    sent.append(b"%03d" % len(sent) * 30)
                    producer.send("plain", sent[-1]).result()

            def work() -> None:
                held.append(queue.receive_many(1)[0])

            def read() -> None:
                read_values.extend(_rest(consumer))
                consumer.commit()

            def clean() -> None:
                broker._directory.maintenance.clean()

            held: list[logbroker.QueueMessage] = []
            read_values: list[bytes | None] = []
            steps: list[Callable[[], None]] = [send, work, read, send, clean, read]
            for number, step in enumerate(steps):
                if number == at:
                    clock.set_back(ms=-jump_ms)
                step()
            # No lease has ended, no member was removed: not a second has passed.
            assert held[0].offset not in {message.offset for message in other.receive_many(100)}
            held[0].accept()
            assert read_values == sent, read_values
            assert consumer.position() == {0: len(sent)}
            clock.advance(ms=31_000)
            again = {message.offset for message in queue.receive_many(100)}
            assert again == set(range(len(sent))) - {0}, again
        with broker.consumer("plain") as consumer:
            assert (left := _rest(consumer)) == sent, left


def _rest(consumer: logbroker.Consumer) -> list[bytes | None]:
    """The values of all that is to be polled."""
    found: list[bytes | None] = []
    while records := consumer.poll():
        found += [record.value for record in records]
    return found


def _times_to_live(path: str, jump_ms: int) -> None:
    """What lives for half an hour is over when the clock is an hour early, and back when it is right again."""
    clock = ManualClock(NOON_MS)
    with logbroker.open(path, clock=clock) as broker:
        broker.create_topic("t")
        broker.create_subscription("workers", topic="t")
        with broker.producer() as producer:
            for value, ttl in ((b"short", HALF_AN_HOUR), (b"long", TWO_HOURS), (b"for ever", None)):
                producer.send("t", value, ttl=ttl).result()
        clock.set_back(ms=-jump_ms)
        living = [b"long", b"for ever"] if jump_ms > 0 else [b"short", b"long", b"for ever"]
        with broker.consumer("t") as consumer:
            assert (found := _rest(consumer)) == living, found
        with broker.queue(subscription="workers") as queue:
            messages = queue.receive_many(10)
            assert [message.value for message in messages] == living
            messages.accept()
        clock.set_back(ms=jump_ms)
        with broker.consumer("t") as consumer:
            assert (found := _rest(consumer)) == [b"short", b"long", b"for ever"], found
        clock.advance(ms=HOUR_MS)
        with broker.consumer("t") as consumer:
            assert (found := _rest(consumer)) == [b"long", b"for ever"], found


def _delays(path: str, jump_ms: int) -> None:
    """What is to be delivered in half an hour comes at that moment of the wall clock; a lease is as long as it was."""
    clock = ManualClock(NOON_MS)
    with logbroker.open(path, clock=clock) as broker:
        broker.create_topic("t")
        broker.create_subscription("workers", topic="t", lease=30.0)
        with broker.producer() as producer:
            producer.send("t", b"later", delay=HALF_AN_HOUR).result()
            producer.send("t", b"now").result()
        with broker.queue(subscription="workers") as queue, broker.queue(subscription="workers") as other:
            (held,) = queue.receive_many(10)
            assert held.value == b"now"
            clock.set_back(ms=-jump_ms)
            due = [b"later"] if jump_ms > 0 else []
            found = [message.value for message in other.receive_many(10)]
            assert found == due, found
            clock.advance(ms=29_000)
            assert other.receive_many(10) == [], "a lease has ended too soon"
            held.release()
            if not due:
                clock.set_back(ms=jump_ms)
                clock.advance(ms=HOUR_MS // 2)
            found += [message.value for message in other.receive_many(10)]
            assert sorted(value or b"" for value in found) == [b"later", b"now"], found


def _transactions(path: str, jump_ms: int) -> None:
    clock = ManualClock(NOON_MS)
    with logbroker.open(path, clock=clock) as broker:
        broker.create_topic("t")
        transaction = broker.transaction("payer", timeout=60)
        transaction.send("t", b"paid").result()
        clock.set_back(ms=-jump_ms)
        assert TransactionCoordinator(broker._directory).abort_orphans() == 0
        transaction.commit()
        with broker.consumer("t") as consumer:
            assert (found := _rest(consumer)) == [b"paid"], found


class JumpingClock(SystemClock):
    """The machine's clock, of which the wall time is set ahead or back."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


def _server(path: str, jump_ms: int) -> None:
    """Members stay members, of both protocols; a transaction is committed; waiting for records ends."""
    clock = JumpingClock()
    server = ServerThread(path, OsFiles(), clock, group_session_ms=45_000).start()
    settings = CLIENT | {"bootstrap.servers": server.address}
    producer = Producer(settings | {"transactional.id": "payer", "transaction.timeout.ms": 60_000})
    producer.init_transactions(PATIENCE_S)
    producer.begin_transaction()
    producer.produce("t", b"before", partition=0)
    assert producer.flush(PATIENCE_S) == 0
    lost: list[TopicPartition] = []
    consumers = [
        _member(settings, f"{protocol} group", lost, **{"group.protocol": protocol})
        for protocol in ("classic", "consumer")
    ]
    clock.ahead_ms = jump_ms
    assert TransactionCoordinator(server.directory).abort_orphans() == 0
    producer.produce("t", b"behind", partition=0)
    producer.commit_transaction(PATIENCE_S)
    for consumer in consumers:
        found: list[bytes | None] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < 2:
            assert time.monotonic() < deadline, f"it hangs behind {found}"
            found += [
                message.value() for message in consumer.consume(2 - len(found), 0.2) if not message.error()
            ]
        assert found == [b"before", b"behind"], found
        consumer.commit(asynchronous=False)  # which a member alone may, at its generation
        assert not lost, f"members lost {lost}"
        consumer.close()
    server.stop()


def _dead_member(path: str, jump_ms: int) -> None:
    """Whoever has gone without a word is found dead after the session's time, which the jump does not prolong."""
    clock = JumpingClock()
    server = ServerThread(path, OsFiles(), clock, group_session_ms=1_000).start()
    settings = CLIENT | {"bootstrap.servers": server.address, "group.protocol": "consumer"}
    server.directory.create_topic("t", 1, LogConfig.parse({}))
    dead = _member(settings, "g", [], **{"group.instance.id": "dead"})
    dead.close()  # a static member does not leave for good
    clock.ahead_ms = jump_ms
    _member(settings, "g", [], **{"group.instance.id": "heir"}).close()
    server.stop()


def _member(settings: dict[str, object], group: str, lost: list[TopicPartition], **more: object) -> Consumer:
    """A member of *group* that has got its partition."""
    reading = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer(settings | reading | more)
    consumer.subscribe(["t"], on_lost=lambda _, partitions: lost.extend(partitions))
    deadline = time.monotonic() + PATIENCE_S
    while not consumer.assignment():
        assert time.monotonic() < deadline, f"it does not get into {group}"
        message = consumer.poll(0.05)
        assert message is None or message.error(), "a record of a transaction in progress is seen"
    return consumer
