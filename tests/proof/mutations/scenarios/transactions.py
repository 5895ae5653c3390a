"""Transactions, producers and groups: what was decided, acknowledged and committed."""

from __future__ import annotations

import datetime
import shutil
import time
from pathlib import Path

import logbroker
from logbroker.linger import LingerThread
from logbroker.queues.partition import QueuePartition
from logbroker.subscriptions import Subscriptions
from logbroker.transactional_id_expiry import expire_transactional_ids
from logbroker_storage.clock import SystemClock
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.events import OffsetEvent
from logbroker_storage.message_ids import MESSAGE_ID_HEADER, identified
from logbroker_storage.record_batch import NewRecord, encode_batch, encode_values
from logbroker_storage.testing import ManualClock, Workbench
from logbroker_storage.testing.workbench import crash

from .machine import Machine, died_at_each_operation

PATIENCE_S = 10.0  # what comes by itself comes within a second or two
WEEKS_MS = 3 * 7 * 86_400_000


def _broker(machine: Machine) -> logbroker.Broker:
    return logbroker.open(machine.path, files=machine.files)


def _after(machine: Machine) -> logbroker.Broker:
    return logbroker.open(machine.started(machine.state()))


def _read(broker: logbroker.Broker, topic: str) -> list[bytes | None]:
    with broker.consumer(topic) as consumer:
        found = []
        while records := consumer.poll():
            found += [record.value for record in records]
        return found


def a_producers_receipts(folder: Path) -> None:
    """A receipt with a result, and a flush that returned, are records on the disk."""
    machine = Machine(folder)
    broker = _broker(machine)
    broker.create_topic("t")
    producer = broker.producer()
    producer.send("t", b"one").result()
    first = _after(machine)
    assert _read(first, "t") == [b"one"]
    first.close()
    producer.send("t", b"two")
    producer.flush()
    second = _after(machine)
    assert _read(second, "t") == [b"one", b"two"]
    second.close()


def _have_nobody_sync_soon_after() -> None:
    """As when a producer's own thread gets no time: it would sync what was only written, soon after.

    For the rest of the process, which ends with the scenario.
    """
    LingerThread._take = lambda *_: []  # type: ignore[method-assign]


def a_careless_producer_that_is_closed(folder: Path) -> None:
    """Closing a producer syncs what it has only written."""
    _have_nobody_sync_soon_after()
    machine = Machine(folder)
    broker = _broker(machine)
    broker.create_topic("t")
    producer = broker.producer(acks="written", linger=0)
    producer.send("t", b"one").result()
    producer.close()
    after = _after(machine)
    assert _read(after, "t") == [b"one"]
    after.close()


def a_named_producers_last_sequence(folder: Path) -> None:
    """The last sequence that a named producer is told is on the disk: what is below it will not be sent again."""
    _have_nobody_sync_soon_after()
    machine = Machine(folder)
    broker = _broker(machine)
    broker.create_topic("t")
    careless = broker.producer(name="loader", acks="written", linger=0)
    careless.send("t", b"0", partition=0, sequence=0).result()
    told = broker.producer(name="loader").last_sequence("t", 0)
    after = _after(machine)
    assert told == 0
    assert after.producer(name="loader").last_sequence("t", 0) == told
    after.close()


def transactions(folder: Path) -> None:
    """Of a transaction there is all or nothing, all once it is committed, whenever the power is cut."""
    _have_nobody_sync_soon_after()
    machine = Machine(folder)
    broker = _broker(machine)
    for topic in ("a", "b"):
        broker.create_topic(topic)
    committed: list[int] = []

    def act() -> None:
        for number in range(2):
            with broker.transaction("tx") as tx:
                # The second one does not write to where a marker of the first must be.
                for topic in ("a", "b")[number:]:
                    tx.send(topic, b"%d" % number)
            committed.append(number)

    for path, count in machine.states_during(act, lambda: len(committed)):
        after = logbroker.open(path)
        a, b = _read(after, "a"), _read(after, "b")
        after.close()
        assert (a, b) in [([], []), ([b"0"], [b"0"]), ([b"0"], [b"0", b"1"])], (a, b)
        assert len(b) >= count, "a committed transaction is gone"


def a_transaction_seen(folder: Path) -> None:
    """What a reader of committed records has seen, it sees after a power cut."""
    machine = Machine(folder)
    broker = _broker(machine)
    broker.create_topic("a")
    log = broker._directory.log("a", 0)

    def seen() -> int:
        return log.offsets().last_stable_offset

    def act() -> None:
        for number in range(2):
            with broker.transaction("tx") as tx:
                tx.send("a", b"%d" % number)

    for path, end in machine.states_during(act, seen):
        after = logbroker.open(path)
        assert after._directory.log("a", 0).offsets().last_stable_offset >= end
        after.close()


def committed_offsets(folder: Path) -> None:
    """A committed offset lasts, and is never above the log's end, whatever the durability of the topic."""
    machine = Machine(folder)
    broker = _broker(machine)
    broker.create_topic("t", config={"durability": "os"})
    with broker.producer(acks="written") as producer:
        producer.send_many("t", [b"0", b"1", b"2"])
        producer.flush()
        consumer = broker.consumer("t", group="g", delivery="manual", start="earliest")
        assert len(consumer.poll()) == 3
        consumer.commit()
        _offset_is(machine, "g", 3)


def _offset_is(machine: Machine, group: str, offset: int) -> None:
    after = _after(machine)
    event = after._directory.groups.committed(group, "t", 0)
    assert event is not None
    assert event.offset == offset
    assert after._directory.log("t", 0).offsets().log_end_offset >= offset, "the group is ahead of the log"
    after.close()


def _unsynced_topic(machine: Machine) -> logbroker.Broker:
    """A broker with a topic of three records that nobody has synced."""
    broker = _broker(machine)
    broker.create_topic("t", config={"durability": "os"})
    log = broker._directory.log("t", 0)
    log.append(encode_values([b"0", b"1", b"2"], [(0, 1_000_000)]))
    return broker


def offsets_that_clients_commit(folder: Path) -> None:
    """``DataDirectory.sync_below``, as the server calls it for its clients' offsets."""
    machine = Machine(folder)
    broker = _unsynced_topic(machine)
    events = [OffsetEvent("g", "t", 0, 3, "", 0)]
    broker._directory.sync_below(events)
    broker._directory.journal.record(events)
    _offset_is(machine, "g", 3)


def a_group_that_is_reset(folder: Path) -> None:
    """A group that is put at the end of a topic is never ahead of the log."""
    machine = Machine(folder)
    broker = _unsynced_topic(machine)
    broker.reset_group("g", "latest", topics=["t"])
    _offset_is(machine, "g", 3)


def a_subscription_that_begins(folder: Path) -> None:
    """A subscription that begins at the end of a topic is never ahead of the log."""
    machine = Machine(folder)
    broker = _unsynced_topic(machine)
    broker.create_subscription("s", topic="t", kind="stream", start="latest")
    _offset_is(machine, "s", 3)


def a_binding_that_begins(folder: Path) -> None:
    """A binding that begins at the end of a topic is never ahead of the log."""
    machine = Machine(folder)
    broker = _unsynced_topic(machine)
    broker.create_topic("target")
    broker.bind("t", "target", name="b")
    groups = broker._directory.groups.names()
    assert len(groups) == 1
    _offset_is(machine, groups[0], 3)


def a_queue_that_is_reset(folder: Path) -> None:
    """A queue that is put at the end of a topic hands out what comes then, also after a power cut."""
    machine = Machine(folder)
    broker = _unsynced_topic(machine)
    broker.create_subscription("s", topic="t", start="earliest")
    subscription = Subscriptions(broker._directory).get("s")
    QueuePartition(broker._directory, subscription, ("t", 0)).reset(
        3
    )  # as an AlterShareGroupOffsets request does
    _hands_out_what_is_new(machine)


def messages_handed_out(folder: Path) -> None:
    """What is settled of a message says nothing of another one that comes in its place after a power cut."""
    machine = Machine(folder)
    broker = _unsynced_topic(machine)
    broker.create_subscription("s", topic="t", start="earliest")
    queue = broker.queue(subscription="s", lease=1000.0)
    queue.accept(queue.receive_many())
    _hands_out_what_is_new(machine)


def _hands_out_what_is_new(machine: Machine) -> None:
    after = _after(machine)
    with after.producer() as producer:
        producer.send("t", b"new").result()
    with after.queue(subscription="s") as queue:
        assert [message.value for message in queue.receive_many()] == [b"new"]
    after.close()


def message_ids(folder: Path) -> None:
    """A message id that was acknowledged is known after a power cut."""
    machine = Machine(folder)
    broker = _broker(machine)
    broker.create_topic("t")
    with broker.producer() as producer:
        producer.send("t", b"first", message_id="x").result()
        after = _after(machine)
        with after.producer() as again:
            assert again.send("t", b"again", message_id="x").result().duplicate
        after.close()


def expiring_records(folder: Path) -> None:
    """That a topic may hold records with a time to live is known as long as the first of them."""
    machine = Machine(folder)
    broker = _broker(machine)
    broker.create_topic("t")
    with broker.producer() as producer:
        producer.send("t", b"short-lived", ttl=datetime.timedelta(hours=1)).result()
        after = _after(machine)
        assert after._directory.may_hold_ttl("t")
        after.close()


def accepted_messages(folder: Path) -> None:
    """An accepted message does not come again, and one that a transaction accepted is done with what it wrote."""
    machine = Machine(folder)
    broker = _broker(machine)
    broker.create_topic("t")
    broker.create_topic("out")
    broker.create_subscription("s", topic="t")
    with broker.producer() as producer:
        producer.send_many("t", [b"0", b"1", b"2"])
    queue = broker.queue(subscription="s", lease=1000.0)
    first, second, third = queue.receive_many(3)
    done: list[bytes] = []

    def act() -> None:
        first.accept()
        done.append(b"0")
        with broker.transaction("tx") as tx:
            tx.send("out", b"1")
            tx.accept([second])
        done.append(b"1")
        third.reject("bad")
        done.append(b"2")

    for path, told in machine.states_during(act, lambda: list(done)):
        after = logbroker.open(path)
        with after.queue(subscription="s") as hands:
            left = [message.value for message in hands.receive_many()]
        assert not set(left) & set(told), "what was settled came again"
        assert _read(after, "out") == ([] if b"1" in left else [b"1"])
        crash(after._directory)


def a_duplicate_elsewhere(folder: Path) -> None:
    """A duplicate is acknowledged when the first record of its id is on the disk, in whatever partition that is."""
    machine = Machine(folder)
    broker = _broker(machine)
    broker.create_topic("t", partitions=2)
    log = broker._directory.log("t", 0)
    broker._directory.note_message_ids("t")
    record = NewRecord(b"first", None, [(MESSAGE_ID_HEADER, b"x")], broker._directory.clock.now_ms())
    found = identified([(0, record.headers, record.timestamp_ms)])
    broker._directory.deduplication("t").append(log, encode_batch([record]), found)  # and nobody syncs it
    with broker.producer() as producer:
        assert producer.send("t", b"again", partition=1, message_id="x").result().duplicate
        after = _after(machine)
        assert _read(after, "t") == [b"first"]
        after.close()


def what_was_only_written(folder: Path) -> None:
    """What a producer with acks="written" writes is synced by itself, soon after."""
    machine = Machine(folder)
    broker = _broker(machine)
    broker.create_topic("t")
    with broker.producer(acks="written", linger=0) as producer:
        producer.send("t", b"one").result()
        _is_synced_in_time(broker)


def _is_synced_in_time(broker: logbroker.Broker) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while broker._directory.log("t", 0).offsets().synced_offset < 1:
        assert time.monotonic() < deadline, "nobody has synced it"
        time.sleep(0.005)


def a_consumer_that_waits(folder: Path) -> None:
    """A record that nobody syncs is synced for a consumer that waits for it."""
    machine = Machine(folder)
    broker = _broker(machine)
    broker.create_topic("t")
    broker._directory.log("t", 0).append(encode_values([b"one"], [(0, 1_000_000)]))
    with broker.consumer("t") as consumer:
        assert [record.value for record in consumer.poll(timeout=PATIENCE_S)] == [b"one"]


def deaths_in_a_transaction(folder: Path) -> None:
    """What a process wrote that died in its transaction is not committed by the next holder of its id."""

    def prepare(path: str) -> None:
        with logbroker.open(path) as broker:
            # With an index entry for every batch a process can die between writing the batch and publishing it.
            broker.create_topic("out", config={"index.interval.bytes": 0})
            with broker.transaction("tx") as tx:
                tx.send("out", b"first")
                tx.send("out", b"first")

    def act(bench: Workbench) -> None:
        broker = logbroker.open(bench.path)
        with broker.transaction("tx") as tx:
            tx.send("out", b"of the dead" * 9)

    for path, operation, died in died_at_each_operation(folder, prepare, act):
        if not died:
            break
        shutil.copytree(path, f"{path}-alone")
        with logbroker.open(f"{path}-alone") as broker:
            decided = _read(broker, "out")
        with logbroker.open(path) as broker:
            with broker.transaction("tx") as tx:
                tx.send("out", b"next")
            assert _read(broker, "out") == [*decided, b"next"], f"died at operation {operation}"


class _WeeksLater(SystemClock):
    """The clock of a machine on which three weeks have passed."""

    def now_ms(self) -> int:
        return super().now_ms() + WEEKS_MS

    def monotonic_ms(self) -> int:
        return super().monotonic_ms() + WEEKS_MS


def forgotten_ids(folder: Path) -> None:
    """A committed transaction stays committed when its id is forgotten, and the power is cut then."""
    machine, clock = Machine(folder), ManualClock()
    broker = logbroker.open(machine.path, files=machine.files, clock=clock)
    broker.create_topic("t", config={"durability": "os", "retention.ms": "-1"})
    log = broker._directory.log("t", 0)
    with broker.transaction("once") as tx:
        tx.send("t", b"v").result()
        log.sync()  # as the system does by itself, in half a minute; of the marker, nobody has it
    clock.advance(ms=WEEKS_MS)
    assert expire_transactional_ids(broker._directory) == 1
    after = _after(machine)
    assert _read(after, "t") == [b"v"]
    after.close()


def deaths_before_an_id_is_forgotten(folder: Path) -> None:
    """A transaction that was decided counts in every log, though its process died before its markers, weeks ago."""

    def prepare(path: str) -> None:
        with logbroker.open(path) as broker:
            broker.create_topic("out", partitions=2, config={"retention.ms": "-1"})

    def act(bench: Workbench) -> None:
        broker = logbroker.open(bench.path)
        with broker.transaction("once") as tx:
            for partition in range(2):
                tx.send("out", b"v", partition=partition)

    for path, operation, died in died_at_each_operation(folder, prepare, act):
        directory = DataDirectory.open(
            path, clock=_WeeksLater()
        )  # nobody has looked for open transactions yet
        expire_transactional_ids(directory)
        directory.close()
        with logbroker.open(path) as broker:
            found = _read(broker, "out")
        assert found == [b"v", b"v"] or (died and not found), f"died at operation {operation}"


def deaths_in_accepting(folder: Path) -> None:
    """A message that a transaction accepts is done with what it wrote, or comes again, wherever the process dies."""

    def prepare(path: str) -> None:
        with logbroker.open(path) as broker:
            broker.create_topic("jobs")
            broker.create_topic("out")
            broker.create_subscription("s", topic="jobs")
            with broker.producer() as producer:
                producer.send("jobs", b"job")

    def act(bench: Workbench) -> None:
        broker = logbroker.open(bench.path)
        queue = broker.queue(subscription="s", lease=1000.0)
        (message,) = queue.receive_many()
        with broker.transaction("tx") as tx:
            tx.send("out", b"done")
            tx.accept([message])

    for path, operation, _ in died_at_each_operation(folder, prepare, act):
        with logbroker.open(path) as broker:
            with broker.queue(subscription="s") as queue:
                left = [message.value for message in queue.receive_many()]
            written = _read(broker, "out")
        assert (left, written) in (([b"job"], []), ([], [b"done"])), f"died at operation {operation}"
