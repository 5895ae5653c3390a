"""Any order of transactions, takeovers, crashes and readers, against a model that is a list of committed records."""

from __future__ import annotations

import shutil
from typing import get_args

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import logbroker
from logbroker import FencedError
from logbroker.consumer import IsolationName
from logbroker.transaction import Transaction
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import decode_records
from logbroker_storage.testing.workbench import crash

from ..proof import delete_folder, new_folder

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
        self.folder = new_folder(in_memory=True)
        self.broker = logbroker.open(self.folder / "data")
        self.broker.create_topic("out", partitions=2, config={"segment.bytes": 1000})
        self.open: dict[str, Model] = {}
        self.visible: list[tuple[int, int, bytes]] = []
        self.hidden: list[tuple[int, int, bytes]] = []  # written and never to be seen
        self.state: dict[str, dict[bytes, bytes]] = {}
        self.number = 0

    def teardown(self) -> None:
        crash(self.broker._directory)
        delete_folder(self.folder)

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

    def any_open(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.open)))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), partition=PARTITIONS)
    def send(self, data: st.DataObject, partition: int) -> None:
        model, value = self.open[self.any_open(data)], self.value()
        metadata = model.transaction.send("out", value, partition=partition).result(10)
        model.records.append((partition, metadata.offset, value))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), key=st.sampled_from([b"a", b"b"]), deletes=st.booleans())
    def write_state(self, data: st.DataObject, key: bytes, deletes: bool) -> None:
        name = self.any_open(data)
        model = self.open[name]
        seen = self.state.get(name, {}) | model.state
        assert model.transaction.state.get(key) == seen.get(key)
        if deletes:
            model.state[key] = None
            model.transaction.state.delete(key)
        else:
            model.state[key] = value = self.value()
            model.transaction.state.put(key, value)

    @rule(partition=PARTITIONS)
    def send_plain(self, partition: int) -> None:
        value = self.value()
        with self.broker.producer() as producer:
            metadata = producer.send("out", value, partition=partition).result(10)
        self.visible.append((partition, metadata.offset, value))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        name = self.any_open(data)
        model = self.open.pop(name)
        model.transaction.commit()
        self.visible += model.records
        kept = self.state.get(name, {}) | model.state
        self.state[name] = {key: value for key, value in kept.items() if value is not None}

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        model = self.open.pop(self.any_open(data))
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
        assert self.broker._directory.view.partitions.open_transactions() == []

    @rule()
    def clean(self) -> None:
        self.broker.clean()

    # What is read ---------------------------------------------------------------------------------

    def seen(self, isolation: Isolation) -> list[tuple[int, int, bytes | None]]:
        """The records that the logs show, without the making of a consumer, which would take most of the time."""
        found: list[tuple[int, int, bytes | None]] = []
        for partition in (0, 1):
            reader = self.broker._directory.log("out", partition).reader(0, isolation)
            while batches := reader.read():
                for batch in batches:
                    if not batch.header.is_control:
                        found += [
                            (partition, record.offset, record.value) for record in decode_records(batch)
                        ]
            reader.close()
        return sorted(found)

    def undecided(self) -> list[tuple[int, int, bytes]]:
        return [record for model in self.open.values() for record in model.records]

    def stable(self) -> list[tuple[int, int, bytes]]:
        """What is committed, up to the first record in each partition of which nobody knows."""
        ends = {
            partition: min(
                (offset for number, offset, _ in self.undecided() if number == partition), default=1 << 62
            )
            for partition in (0, 1)
        }
        return sorted(record for record in self.visible if record[1] < ends[record[0]])

    @rule(isolation=st.sampled_from(get_args(IsolationName)))
    def consume(self, isolation: IsolationName) -> None:
        with self.broker.consumer("out", isolation=isolation) as consumer:
            found = []
            while records := consumer.poll(1000, 0):
                found += [(record.partition, record.offset, record.value) for record in records]
        everything = sorted(self.visible + self.hidden + self.undecided())
        assert sorted(found) == (self.stable() if isolation == "read_committed" else everything)

    @invariant()
    def readers_see_what_is_committed_up_to_what_is_open(self) -> None:
        assert self.seen(Isolation.READ_COMMITTED) == self.stable()

    @invariant()
    def an_uncommitted_reader_sees_everything(self) -> None:
        everything = sorted(self.visible + self.hidden + self.undecided())
        assert self.seen(Isolation.READ_UNCOMMITTED) == everything
