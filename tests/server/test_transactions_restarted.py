"""Transactions of clients whose server died in the middle: what is answered is true, and nothing counts by half.

Both versions: clients that keep their epoch (EndTxn below version 5), and those whose epoch grows (KIP-890).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

import logbroker
from logbroker.holdings import Claim
from logbroker.transaction_coordinator import TransactionCoordinator
from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import WriteFailedError
from logbroker_storage.log_config import LogConfig
from logbroker_storage.record_batch import encode_values

from .raw_client import (
    ADD_PARTITIONS,
    END_TXN,
    INIT_PRODUCER_ID,
    OFFSET_FETCH,
    RawClient,
    batch,
)
from .server_process import ServerProcess

ADD_OFFSETS, TXN_OFFSET_COMMIT = 25, 28
OK = ErrorCode.none
OLD_END, NEW_END = 3, 5  # versions of EndTxn
TIMEOUT_MS = 60_000
VERSIONS = pytest.mark.parametrize("version", [OLD_END, NEW_END])


class Producer:
    """A transactional producer of a few lines, which finds its server again."""

    def __init__(self, server: ServerProcess, *, version: int = OLD_END) -> None:
        self._server = server
        self._version = version
        self._client = RawClient(server.port)
        self.id, self.epoch = self._client.new_producer("id")
        self._sequence = 0

    def close(self) -> None:
        self._client.close()

    def restart(self) -> None:
        """The server is killed, and another takes its place."""
        self._server.kill()
        self._server.start()
        self._client.close()
        self._client = RawClient(self._server.port)

    def _send(self, api_key: int, version: int, **fields: Any) -> Any:
        who = {"transactional_id": "id", "producer_id": self.id, "producer_epoch": self.epoch}
        return self._client.send(api_key, version, **(who | fields))

    def init(self, transactional_id: str = "id", *, version: int = 4) -> ErrorCode:
        """InitProducerId of a producer that has an id and an epoch, and goes on with what it is answered."""
        fields = {"transactional_id": transactional_id, "transaction_timeout": TIMEOUT_MS}
        answer = self._send(INIT_PRODUCER_ID, version, **fields)
        if answer.error_code is OK:
            self.id, self.epoch, self._sequence = answer.producer_id, answer.producer_epoch, 0
        code: ErrorCode = answer.error_code
        return code

    def send(self, value: bytes) -> ErrorCode:
        added = self.add()
        return added if added is not OK else self.produce(value)

    def add(self) -> ErrorCode:
        topics = [{"name": "t", "partitions": [0]}]
        who = {f"v3_and_below_{name}": value for name, value in self._names().items()}
        added = self._client.send(ADD_PARTITIONS, 3, v3_and_below_topics=topics, **who)
        ((partition,),) = [topic.results_by_partition for topic in added.results_by_topic_v3_and_below]
        return ErrorCode(partition.partition_error_code)

    def produce(self, value: bytes, *, version: int = 11) -> ErrorCode:
        records = batch(
            value,
            producer_id=self.id,
            producer_epoch=self.epoch,
            base_sequence=self._sequence,
            transactional=True,
        )
        answer = self._client.produce("t", records, version=version, transactional_id="id")
        self._sequence += answer.error_code is OK
        return ErrorCode(answer.error_code)

    def _names(self) -> dict[str, Any]:
        return {"transactional_id": "id", "producer_id": self.id, "producer_epoch": self.epoch}

    def send_offset(self, offset: int) -> ErrorCode:
        added = self._send(ADD_OFFSETS, 3, group_id="g")
        if added.error_code is not OK:
            return ErrorCode(added.error_code)
        partition = {"partition_index": 0, "committed_offset": offset, "committed_leader_epoch": -1}
        topics = [{"name": "source", "partitions": [partition]}]
        answer = self._send(TXN_OFFSET_COMMIT, 3, group_id="g", generation_id=-1, topics=topics)
        ((answered,),) = [topic.partitions for topic in answer.topics]
        return ErrorCode(answered.error_code)

    def end(self, *, commit: bool = True) -> ErrorCode:
        answer = self._send(END_TXN, self._version, committed=commit)
        if answer.error_code is OK and self._version == NEW_END:
            self.epoch, self._sequence = answer.producer_epoch, 0
        return ErrorCode(answer.error_code)

    def committed(self) -> int:
        """The group's offset."""
        topics = [{"name": "source", "partition_indexes": [0]}]
        answer = self._client.send(OFFSET_FETCH, 7, group_id="g", topics=topics, require_stable=True)
        ((partition,),) = [topic.partitions for topic in answer.topics]
        return int(partition.committed_offset)


Open = Callable[..., Producer]


@pytest.fixture
def server(start_server: Callable[..., ServerProcess], tmp_path: Path) -> ServerProcess:
    """A server with two topics, which nobody else has open."""
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("t")
        broker.create_topic("source")
        with broker.producer() as producer:
            producer.send_many("source", [b"%d" % number for number in range(10)])
    return start_server()


@pytest.fixture
def open_producer(server: ServerProcess) -> Iterator[Open]:
    producers = []

    def open_one(**options: Any) -> Producer:
        producers.append(Producer(server, **options))
        return producers[-1]

    yield open_one
    for producer in producers:
        producer.close()


@pytest.fixture(params=["alone", "beside others"])
def company(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[None]:
    """Whether somebody else keeps the directory open while the server is away."""
    if request.param == "alone":
        yield
    else:
        with logbroker.open(server.data):
            yield


def abort_orphans(server: ServerProcess) -> None:
    """What any process does at its look-around."""
    with closing(DataDirectory.open(server.data)) as directory:
        assert TransactionCoordinator(directory).abort_orphans() == 1


def seen(server: ServerProcess, isolation: Any = "read_committed") -> list[bytes | None]:
    with logbroker.open(server.data) as broker, broker.consumer("t", isolation=isolation) as consumer:
        return [record.value for record in consumer.poll(100, 0.2)]


# Offsets that were told to be part of it ------------------------------------------------------------------


@VERSIONS
def test_a_negative_offset_takes_back_what_was_committed(open_producer: Open, version: int) -> None:
    producer = open_producer(version=version)
    for offset in (3, -1):
        assert producer.send_offset(offset) is OK
        assert producer.end() is OK
        assert producer.committed() == offset


@VERSIONS
@pytest.mark.usefixtures("company")
def test_offsets_that_were_answered_for_are_committed_or_the_commit_is_refused(
    open_producer: Open, version: int
) -> None:
    """They are all that there was of the transaction."""
    producer = open_producer(version=version)
    assert producer.send_offset(3) is OK
    producer.restart()
    assert producer.end() is not OK
    assert producer.committed() == -1


@VERSIONS
@pytest.mark.usefixtures("company")
def test_records_do_not_count_without_the_offsets_that_were_sent_before_them(
    server: ServerProcess, open_producer: Open, version: int
) -> None:
    """The offsets went with the server, so a new one takes no record into the same transaction."""
    producer = open_producer(version=version)
    assert producer.send_offset(3) is OK
    producer.restart()
    producer.send(b"copy")
    assert producer.end() is not OK
    assert producer.committed() == -1
    assert seen(server) == []


@pytest.mark.usefixtures("company")
def test_records_in_the_log_do_not_count_without_their_offsets(
    server: ServerProcess, open_producer: Open
) -> None:
    producer = open_producer()
    assert producer.send(b"copy") is OK
    assert producer.send_offset(3) is OK
    producer.restart()
    assert producer.end() is not OK
    assert producer.committed() == -1
    assert seen(server) == []


@VERSIONS
@pytest.mark.usefixtures("company")
def test_a_producer_whose_transaction_is_gone_begins_anew(
    server: ServerProcess, open_producer: Open, version: int
) -> None:
    """With the id and the epoch that it has, or those that were made for it."""
    producer = open_producer(version=version)
    producer.send(b"lost")
    producer.send_offset(3)
    producer.restart()
    assert producer.end() is not OK
    assert producer.init() is OK
    assert producer.send(b"copy") is OK
    assert producer.send_offset(3) is OK
    assert producer.end() is OK
    assert seen(server) == [b"copy"]
    assert producer.committed() == 3


# Partitions that were added, and nothing sent there ---------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("earlier", [0, 1], ids=["the first", "behind another"])
def test_a_batch_that_meets_a_new_server_is_part_of_its_transaction(
    server: ServerProcess, open_producer: Open, version: int, earlier: int
) -> None:
    """Its partition was added before, of which the server that was killed told nobody."""
    producer = open_producer(version=version)
    for _ in range(earlier):
        assert producer.send(b"before") is OK
        assert producer.end() is OK
    assert producer.add() is OK
    producer.restart()
    assert producer.produce(b"1") is OK
    assert producer.send_offset(3) is OK
    assert producer.produce(b"2") is OK
    assert producer.end() is OK
    assert seen(server) == [b"before"] * earlier + [b"1", b"2"]
    assert producer.committed() == 3


@VERSIONS
@pytest.mark.usefixtures("company")
def test_no_commit_succeeds_without_a_batch_that_was_refused_after_a_restart(
    server: ServerProcess, open_producer: Open, version: int
) -> None:
    producer = open_producer(version=version)
    assert producer.add() is OK
    producer.restart()
    outcomes = [producer.produce(b"1"), producer.send_offset(3), producer.end()]
    assert len(set(outcomes)) == 1
    is_committed = outcomes == [OK] * 3
    assert seen(server) == [b"1"] * is_committed
    assert producer.committed() == (3 if is_committed else -1)


def test_a_batch_adds_its_partition_in_no_later_transaction(open_producer: Open) -> None:
    producer = open_producer()
    producer.restart()
    assert producer.produce(b"1") is OK
    assert producer.end() is OK
    assert producer.produce(b"2") is ErrorCode.invalid_txn_state


@VERSIONS
def test_a_transaction_that_went_on_is_gone_when_its_offsets_go_with_a_second_server(
    server: ServerProcess, open_producer: Open, version: int
) -> None:
    producer = open_producer(version=version)
    assert producer.add() is OK
    producer.restart()
    assert producer.send_offset(3) is OK
    producer.restart()
    assert producer.produce(b"1") is ErrorCode.invalid_producer_id_mapping
    assert producer.end() is ErrorCode.invalid_producer_id_mapping
    assert seen(server) == []
    assert producer.committed() == -1


# An end whose answer was lost -----------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.usefixtures("company")
def test_an_end_is_answered_again_after_a_restart(
    server: ServerProcess, open_producer: Open, version: int, commit: bool
) -> None:
    producer = open_producer(version=version)
    epoch = producer.epoch
    producer.send(b"1")
    producer.send_offset(3)
    assert producer.end(commit=commit) is OK
    following, producer.epoch = producer.epoch, epoch
    producer.restart()
    assert producer.end(commit=commit) is OK
    assert producer.epoch == following
    assert seen(server) == [b"1"] * commit
    assert producer.committed() == (3 if commit else -1)
    assert producer.init() is OK


@VERSIONS
@pytest.mark.parametrize("commit", [True, False])
def test_an_end_is_not_answered_as_if_it_had_been_the_other(
    server: ServerProcess, open_producer: Open, version: int, commit: bool
) -> None:
    """A client that gives up on a commit, and aborts, would do the same work a second time."""
    producer = open_producer(version=version)
    epoch = producer.epoch
    producer.send(b"1")
    assert producer.end(commit=commit) is OK
    following, producer.epoch = producer.epoch, epoch
    refusal = ErrorCode.invalid_txn_state if version == OLD_END else ErrorCode.producer_fenced
    assert producer.end(commit=not commit) is refusal
    assert producer.end(commit=commit) is OK
    assert producer.epoch == following
    assert producer.send(b"2") is OK
    assert producer.end(commit=not commit) is OK
    assert seen(server) == ([b"1"] if commit else [b"2"])


@VERSIONS
def test_a_decision_whose_markers_are_missing_is_finished_and_answered_again(
    start_server: Callable[..., ServerProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
) -> None:
    """The server died behind the decision. To refuse its commit would have the producer do it all a second time."""
    claim = _decide_without_markers(tmp_path / "data", monkeypatch, keeps_epoch=version == OLD_END)
    server = start_server(data=tmp_path / "data")
    fields = {
        "transactional_id": "id",
        "producer_id": claim.producer_id,
        "producer_epoch": claim.epoch,
        "committed": True,
    }
    with RawClient(server.port) as client:
        assert client.send(END_TXN, version, **fields).error_code is OK
        assert client.send(END_TXN, version, **fields).error_code is OK
    assert seen(server) == [b"1"]


def _decide_without_markers(data: Path, monkeypatch: pytest.MonkeyPatch, *, keeps_epoch: bool) -> Claim:
    def fail(*_: object) -> None:
        raise WriteFailedError("no")

    with closing(DataDirectory.open(str(data))) as directory:
        directory.create_topic("t", 1, LogConfig.parse({}))
        coordinator = TransactionCoordinator(directory)
        claim = coordinator.claim("id", timeout_ms=TIMEOUT_MS)
        coordinator.holdings.add_partitions(claim, [("t", 0)])
        ids = {"producer_id": claim.producer_id, "producer_epoch": claim.epoch, "base_sequence": 0}
        directory.log("t", 0).append(encode_values([b"1"], [(0, 1)], transactional=True, **ids))
        directory.log("t", 0).sync()
        with monkeypatch.context() as context:
            context.setattr(coordinator, "_write_markers", fail)
            coordinator.commit(claim, keeps_epoch=keeps_epoch)
    return claim


# InitProducerId whose answer was lost ---------------------------------------------------------------------


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_producer_that_asks_again_for_its_next_epoch_is_not_fenced(
    server: ServerProcess, open_producer: Open, is_open: bool, is_restarted: bool
) -> None:
    """KIP-360. It is answered the same."""
    producer = open_producer()
    if is_open:
        producer.send(b"lost")
    epoch = producer.epoch
    assert producer.init() is OK
    assert producer.epoch == epoch + 1
    producer.epoch = epoch
    if is_restarted:
        producer.restart()
    assert producer.init() is OK
    assert producer.epoch == epoch + 1
    assert producer.send(b"1") is OK
    assert producer.end() is OK
    assert seen(server) == [b"1"]


def test_a_producer_whose_id_was_claimed_by_another_is_fenced(open_producer: Open) -> None:
    producer = open_producer()
    producer.send(b"lost")
    open_producer()
    assert producer.init() is ErrorCode.producer_fenced
    assert producer.end() is ErrorCode.producer_fenced


def test_an_id_that_nobody_has_claimed_is_given_to_who_tells_any_producer_id(open_producer: Open) -> None:
    """As in Kafka: clients of Go and of Node tell 0 and 0 before they have any."""
    producer = open_producer()
    own, producer.id, producer.epoch = producer.id, 0, 0
    assert producer.init("another") is OK
    assert (producer.id > own, producer.epoch) == (True, 0)


@pytest.mark.parametrize(
    ("version", "fenced"), [(3, ErrorCode.invalid_producer_epoch), (4, ErrorCode.producer_fenced)]
)
def test_who_tells_the_producer_id_of_somebody_else_is_fenced(
    open_producer: Open, version: int, fenced: ErrorCode
) -> None:
    producer = open_producer()
    producer.id += 1
    assert producer.init(version=version) is fenced


def test_an_epoch_that_was_used_is_not_given_again(open_producer: Open) -> None:
    producer = open_producer()
    epoch = producer.epoch
    assert producer.init() is OK
    assert producer.send(b"1") is OK
    following, producer.epoch = producer.epoch, epoch
    assert producer.init() is ErrorCode.producer_fenced
    producer.epoch = following
    assert producer.end() is OK


def test_a_batch_of_a_transaction_that_is_gone_is_refused_so_that_its_producer_aborts(
    server: ServerProcess, open_producer: Open
) -> None:
    """To INVALID_PRODUCER_EPOCH librdkafka's producer would end for good."""
    producer = open_producer()
    assert producer.send(b"1") is OK
    producer.restart()
    assert producer.produce(b"2") is ErrorCode.invalid_producer_id_mapping


def test_a_transaction_that_is_gone_is_answered_so_when_it_has_been_aborted_too(
    server: ServerProcess, open_producer: Open
) -> None:
    """librdkafka's producer that came back after the look-around was told that another fenced it, and ended."""
    producer = open_producer()
    assert producer.send(b"1") is OK
    producer.restart()
    abort_orphans(server)
    assert producer.produce(b"2") is ErrorCode.invalid_producer_id_mapping
    assert producer.add() is ErrorCode.invalid_producer_id_mapping
    assert producer.end() is ErrorCode.invalid_producer_id_mapping
    assert producer.end(commit=False) is ErrorCode.invalid_producer_id_mapping
    assert producer.init() is OK
    assert producer.send(b"3") is OK
    assert producer.end() is OK
    assert seen(server) == [b"3"]


@pytest.mark.parametrize("is_aborted", [False, True])
def test_a_producer_of_version_2_aborts_a_transaction_that_is_gone_and_goes_on(
    server: ServerProcess, open_producer: Open, is_aborted: bool
) -> None:
    """Java's producer ends for good for most answers; not for these."""
    producer = open_producer(version=NEW_END)
    assert producer.produce(b"1", version=12) is OK
    producer.restart()
    if is_aborted:
        abort_orphans(server)
    assert producer.produce(b"2", version=12) is ErrorCode.invalid_producer_epoch
    assert producer.end(commit=False) is OK
    assert producer.produce(b"3", version=12) is OK
    assert producer.end() is OK
    assert seen(server) == [b"3"]


@pytest.mark.parametrize("is_restarted", [False, True])
def test_an_older_holder_that_aborts_is_fenced_and_not_told_the_epoch_of_the_newer(
    server: ServerProcess, open_producer: Open, is_restarted: bool
) -> None:
    older = open_producer(version=NEW_END)
    assert older.produce(b"1", version=12) is OK
    newer = open_producer(version=NEW_END)
    if is_restarted:
        older.restart()
    assert older.end(commit=False) is ErrorCode.producer_fenced
    assert older.epoch < newer.epoch
