"""Kafka clients of a server whose disk fails, and the account of what they were told.

client            topic      after the disk is well again
once              "plain"    idempotent: each record that it was given is there, once, in order, and no error was told
at once           "loose"    tries nothing again: it hears of the disk itself, and that is what it hears
transactional     "paid"     what it was told to be committed is there, all of it; what was not is there whole, or not
reader            "plain"    its group is where it was told that it is, or where it asked to be and was not answered

Errors may be those of a disk, or that it was not in time; none may be the end of a client.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from ..history.client import CLIENT
from .account import Account, Decision, Told

TOPICS = ("plain", "loose", "paid")
GROUP = "readers"
PATIENCE_S = 60.0
SOON_S = 0.15  # how long is waited for something that may not come while the disk is bad

OF_THE_DISK = {"KAFKA_STORAGE_ERROR", "COORDINATOR_NOT_AVAILABLE"}
TOO_LATE = {"_TIMED_OUT", "_MSG_TIMED_OUT", "REQUEST_TIMED_OUT"}
# What is said of a coordinator that is being looked for anew, and of offsets that nobody has asked to commit.
MEANWHILE = {"_STATE", "_WAIT_COORD", "NOT_COORDINATOR", "_TRANSPORT"}
# The second of two batches in flight, of which the first was refused: the transaction is to be aborted.
SKIPPED = {"OUT_OF_ORDER_SEQUENCE_NUMBER"}
# A server that was started anew knows no members, and no transaction that was in progress: see group_registry and
# network_transactions. Clients join again, and abort.
STARTED_ANEW = {"ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "INVALID_TXN_STATE", "INVALID_PRODUCER_ID_MAPPING"}


class Clients:
    """One of each, connected to *address*; ``account`` is what they were told."""

    def __init__(self, address: str, account: Account, *, value_bytes: int = 200) -> None:
        self.account = account
        self.refusals: dict[str, set[str]] = {}  # what was told, by client
        self.may_be_forgotten = False  # whether the server was started anew
        self._fatal: list[str] = []
        self._size = value_bytes
        self._count = 0
        self._decision: Decision | None = None  # of the transaction that is not ended
        self._is_aborted = False  # whether that is to be its end
        self._is_closed = False
        settings = {"bootstrap.servers": address, "linger.ms": 0, "error_cb": self._heard}
        self._once = Producer(CLIENT | settings | {"enable.idempotence": True})
        self._at_once = Producer(CLIENT | settings | {"acks": "all", "retries": 0})
        self._transactional = Producer(CLIENT | settings | {"transactional.id": "payer"})
        reading = {
            "group.id": GROUP,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 50,
            "heartbeat.interval.ms": 100,  # a server that was started anew is soon noticed
            "fetch.error.backoff.ms": 20,
        }
        self._reader = Consumer(CLIENT | {"bootstrap.servers": address, "error_cb": self._heard} | reading)
        self._reader.subscribe(["plain"])
        self._read = 0  # values of "plain" that the reader got
        self._insist(self._transactional.init_transactions)

    def _heard(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal.append(str(error))

    # While the disk is bad --------------------------------------------------------------------------------

    def try_everything(self) -> None:
        """Each client does what it does once; what does not come soon is left for later."""
        self._send(self._once, "plain")
        self._send(self._at_once, "loose")
        self._pay()
        self._once.poll(0)
        assert self._at_once.flush(PATIENCE_S) == 0, "a record that is tried once is not answered for"
        self._once.flush(SOON_S)
        self._consume(SOON_S)
        self._check_alive()

    def _send(self, producer: Producer, topic: str) -> None:
        value = self._value(topic)
        records = self.account.records.setdefault(topic, [])
        number = len(records)
        records.append((value, Told.UNKNOWN))
        producer.produce(topic, value, on_delivery=partial(self._delivered, topic, number))

    def _delivered(self, topic: str, number: int, error: KafkaError | None, _: Message) -> None:
        if error is None:
            records = self.account.records[topic]
            records[number] = (records[number][0], Told.DONE)
        else:
            self._refused(topic, error)

    def _value(self, topic: str) -> bytes:
        self._count += 1
        return b"%s %06d " % (topic.encode(), self._count) + b"." * self._size

    def _pay(self) -> None:
        """A transaction of two records; the one before, first, if it is not ended yet."""
        if self._decision is None:
            self._transactional.begin_transaction()
            records = [("paid", self._value("paid")) for _ in range(2)]
            self._decision = Decision(records, Told.UNKNOWN)
            self.account.decisions.append(self._decision)
            for topic, value in records:
                self._transactional.produce(topic, value)
        self._end(SOON_S)

    def _end(self, timeout_s: float) -> None:
        """Commit the transaction in progress, or abort it where that is refused; it may stay undecided."""
        assert self._decision is not None
        producer = self._transactional
        try:
            if not self._is_aborted:
                producer.commit_transaction(timeout_s)
                self._decision.told = Told.DONE
        except KafkaException as error:
            self._refused("paid", error.args[0])
            if not error.args[0].txn_requires_abort():
                return
            self._is_aborted = True
        if self._is_aborted:
            try:
                producer.abort_transaction(timeout_s)
                self._decision.told = Told.REFUSED
            except KafkaException as error:
                self._refused("paid", error.args[0])
                return
        self._decision, self._is_aborted = None, False

    def _consume(self, timeout_s: float) -> None:
        """Read what there is, as soon as some of it comes, and commit it."""
        may_be_at = self.account.offsets.setdefault(GROUP, {None})
        told = sum(told is Told.DONE for _, told in self.account.records["plain"])
        for message in self._reader.consume(max(1, told - self._read), timeout_s):
            error = message.error()
            if error is not None:
                self._refused(GROUP, error)
                continue
            offset = message.offset()
            beginnings = {self._read} | {
                at or 0 for at in may_be_at
            }  # where its group is, if it had to join again
            assert offset in beginnings, (
                f"offset {offset} comes behind {self._read}, the group being at {may_be_at}"
            )
            expected = self.account.records["plain"][offset][0]
            assert message.value() == expected, f"{message.value()!r} at {offset} instead of {expected!r}"
            self._read = offset + 1
        if not self._read:
            return
        asked = TopicPartition("plain", 0, self._read)
        may_be_at.add(self._read)
        try:
            for partition in self._reader.commit(offsets=[asked], asynchronous=False) or []:
                if partition.error is not None:
                    raise KafkaException(partition.error)
        except KafkaException as error:
            self._refused(GROUP, error.args[0])
        else:
            self.account.offsets[GROUP] = {self._read}

    def _refused(self, client: str, error: KafkaError) -> None:
        self.refusals.setdefault(client, set()).add(f"{error.name()}: {error.str()}")
        allowed = OF_THE_DISK | TOO_LATE | MEANWHILE | (STARTED_ANEW if self.may_be_forgotten else set())
        if client == "loose":
            allowed = {"KAFKA_STORAGE_ERROR"}
        elif client == "paid":
            allowed = allowed | SKIPPED
        assert error.name() in allowed, f"{client} is told {error}"
        assert not error.fatal(), f"{client} cannot go on: {error}"

    def _check_alive(self) -> None:
        assert not self._fatal, f"a client cannot go on: {self._fatal}"

    # Afterwards -------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """All that was left is done, and once more everything."""
        for producer, name in ((self._once, "once"), (self._at_once, "at once")):
            self._send(producer, "plain" if name == "once" else "loose")
            assert producer.flush(PATIENCE_S) == 0, f"{name}: writes do not go on"
        self._until(lambda: self._decision is None, "a transaction does not end", self._end_if_any)
        self._pay_at_last()
        sent = self.account.records["plain"]
        self._until(
            lambda: self.account.offsets.get(GROUP) == {len(sent)},
            f"the reader is at {self._read} of {len(sent)}",
            lambda: self._consume(0.1),
        )
        unanswered = [value[:12] for value, told in sent if told is not Told.DONE]
        assert not unanswered, f"an idempotent producer, which had time, was told of errors: {unanswered}"
        value, told = self.account.records["loose"][-1]
        assert told is Told.DONE, f"{value[:12]!r} on a sound disk is refused"
        self._check_alive()

    def _pay_at_last(self) -> None:
        """A transaction that is committed. librdkafka may have to abort one before: of one that was refused with
        INVALID_TXN_STATE it counts the sequences of what was not written, until it is told that they are out of order.
        """
        decisions = self.account.decisions
        for _ in range(2):
            begun = len(decisions)
            self._pay()
            self._until(lambda: self._decision is None, "a transaction does not end", self._end_if_any)
            if decisions[begun].told is Told.DONE:
                return
        raise AssertionError(f"transactions on a sound disk are refused: {self.refusals}")

    def _end_if_any(self) -> None:
        if self._decision is not None:
            self._end(1.0)

    def _until(self, condition: Callable[[], bool], otherwise: str, act: Callable[[], None]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, otherwise
            act()

    def _insist(self, call: Callable[[float], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                call(1.0)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise

    def close(self) -> None:
        """The end of all of them: a client that lives on looks for its server at a port that may be another's then.

        Again, it does nothing: where a promise turns out to be broken behind this, it is called a second time.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._reader.close()
        for producer in (self._once, self._at_once, self._transactional):
            producer.purge()
            producer.flush(1)
        del self._once, self._at_once, self._transactional, self._reader
