"""Any order of transactions, takeovers, crashes and readers, against a model that is a list of committed records."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import logbroker
from logbroker import FencedError
from logbroker.transaction import Transaction
from logbroker_storage.testing.workbench import crash

IDS = st.sampled_from(["one", "two", "three"])
PARTITIONS = st.integers(0, 1)


class Model:
    """One transaction as the test remembers it."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction
        self.records: list[tuple[int, int, bytes]] = []  # partition, offset, value
        self.state: dict[bytes, bytes | None] = {}


class Transactions(RuleBasedStateMachine):
    """Values are numbered, so that each is told from all others."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.broker = logbroker.open(self.folder / "data")
        self.broker.create_topic("out", partitions=2, config={"segment.bytes": 1000})
        self.open: dict[str, Model] = {}
        self.visible: list[tuple[int, int, bytes]] = []
        self.hidden: list[tuple[int, int, bytes]] = []  # written and never to be seen
        self.state: dict[str, dict[bytes, bytes]] = {}
        self.number = 0

    def teardown(self) -> None:
        for model in self.open.values():
            model.transaction.abort()
        self.broker.close()
        shutil.rmtree(self.folder)

    def value(self) -> bytes:
        self.number += 1
        return b"%d" % self.number

    @rule(name=IDS)
    def begin(self, name: str) -> None:
        older = self.open.pop(name, None)
        self.open[name] = Model(self.broker.transaction(name))
        if older is not None:  # fenced
            self.hidden += older.records
            try:
                older.transaction.commit()
            except FencedError:
                return
            raise AssertionError("a fenced transaction was committed")

    @rule(name=IDS, partition=PARTITIONS)
    def send(self, name: str, partition: int) -> None:
        if name in self.open:
            model, value = self.open[name], self.value()
            metadata = model.transaction.send("out", value, partition=partition).result(10)
            model.records.append((partition, metadata.offset, value))

    @rule(name=IDS, key=st.sampled_from([b"a", b"b"]), deletes=st.booleans())
    def write_state(self, name: str, key: bytes, deletes: bool) -> None:
        if name in self.open:
            model = self.open[name]
            seen = self.state.get(name, {}) | model.state
            assert model.transaction.state.get(key) == seen.get(key)
            model.state[key] = None if deletes else self.value()
            if deletes:
                model.transaction.state.delete(key)
            else:
                model.transaction.state.put(key, model.state[key])

    @rule(partition=PARTITIONS)
    def send_plain(self, partition: int) -> None:
        value = self.value()
        with self.broker.producer() as producer:
            metadata = producer.send("out", value, partition=partition).result(10)
        self.visible.append((partition, metadata.offset, value))

    @rule(name=IDS)
    def commit(self, name: str) -> None:
        model = self.open.pop(name, None)
        if model is not None:
            model.transaction.commit()
            self.visible += model.records
            kept = self.state.get(name, {}) | model.state
            self.state[name] = {key: value for key, value in kept.items() if value is not None}

    @rule(name=IDS)
    def abort(self, name: str) -> None:
        model = self.open.pop(name, None)
        if model is not None:
            model.transaction.abort()
            self.hidden += model.records

    @precondition(lambda self: self.number > 2)
    @rule(deletes_view=st.booleans())
    def crash(self, deletes_view: bool) -> None:
        crash(self.broker._directory)
        for model in self.open.values():
            self.hidden += model.records
        self.open.clear()
        if deletes_view:
            shutil.rmtree(self.folder / "data" / "view")
        self.broker = logbroker.open(self.folder / "data")
        assert self.broker._directory.view.open_transactions() == []

    @rule()
    def clean(self) -> None:
        self.broker.clean()

    def seen(self, isolation: str) -> list[tuple[int, int, bytes]]:
        with self.broker.consumer("out", isolation=isolation) as consumer:
            found = []
            while records := consumer.poll(1000, 0):
                found += [(record.partition, record.offset, record.value) for record in records]
        return sorted(found)

    @invariant()
    def readers_see_what_is_committed_up_to_what_is_open(self) -> None:
        undecided = [record for model in self.open.values() for record in model.records]
        stable = {
            partition: min(
                (offset for number, offset, _ in undecided if number == partition), default=1 << 62
            )
            for partition in (0, 1)
        }
        expected = sorted(record for record in self.visible if record[1] < stable[record[0]])
        assert self.seen("read_committed") == expected

    @invariant()
    def an_uncommitted_reader_sees_everything(self) -> None:
        undecided = [record for model in self.open.values() for record in model.records]
        assert self.seen("read_uncommitted") == sorted(self.visible + self.hidden + undecided)


TestTransactions = Transactions.TestCase
TestTransactions.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
