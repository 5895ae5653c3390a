"""What a poll has returned becomes one transaction for each partition, never two."""

from __future__ import annotations

from pathlib import Path

import logbroker
from logbroker import Message
from logbroker.exactly_once import by_partition
from logbroker_storage.events import OffsetEvent, TransactionEvent, decode_event
from logbroker_storage.record import Record
from logbroker_storage.record_batch import decode_records


def test_a_partition_that_a_poll_came_to_twice_is_one_batch_in_its_order() -> None:
    def record(partition: int, offset: int) -> Record:
        return Record("t", partition, offset, 0, None, b"")

    polled = [record(0, 1), record(0, 2), record(1, 7), record(0, 3), record(1, 8)]
    assert by_partition(polled) == [
        (("t", 0), [record(0, 1), record(0, 2), record(0, 3)]),
        (("t", 1), [record(1, 7), record(1, 8)]),
    ]


def test_no_transaction_of_a_transform_has_records_without_their_offset(tmp_path: Path) -> None:
    """The second visit of a poll to a partition must not be committed after the offset behind it.

    A partition's reads are of a megabyte; what is left of one is handed out before the next.
    """
    with logbroker.open(tmp_path / "data") as broker:
        for topic in ("in", "out"):
            broker.create_topic(topic, 4)
        with broker.producer() as producer:
            producer.send_many("in", [Message(b"x" * 5000, partition=0) for _ in range(1000)])
            producer.send_many("in", [Message(b"x" * 9000, partition=1) for _ in range(300)])
        polls: list[list[tuple[str, int]]] = []
        with broker.consumer("in") as consumer:
            while records := consumer.poll(150, 0):
                places = [(record.topic, record.partition) for record in records]
                polls.append([place for n, place in enumerate(places) if not n or places[n - 1] != place])
        assert any(len(visits) > len(set(visits)) for visits in polls), (
            "a poll that comes back, or it shows nothing"
        )

        done = broker.transform(
            "in", "out", group="g", function=lambda record: record.value, max_records=150, idle_timeout=0.3
        )
        assert done == 1300
        reader = broker._directory.journal.log.reader(0)
        transactions: list[list[type]] = []
        while batches := reader.read():
            for batch in batches:
                events = [
                    type(decode_event(record.value))
                    for record in decode_records(batch, "__journal", 0)
                    if (record.value is not None and b"commit" in record.value) or b"offset" in record.key
                ]
                if TransactionEvent in events:
                    transactions.append(events)
        reader.close()
        assert len(transactions) > 5
        assert all(OffsetEvent in events for events in transactions)
