"""The transactions in a log, as its batches tell: open, committed or aborted, beside what the journal decided.

    the batches say        the journal says of that epoch      the state shown
    a marker               anything                            committed, aborted
    no marker              nothing                             open
    no marker              commit, abort                       commit decided, abort decided (the marker is missing)

A transaction over several partitions is a row in each; its rows share producer id and epoch. What retention or
compaction has removed is not shown: a marker whose records are gone stands for itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.events import TransactionEvent
from logbroker_storage.record_batch import ControlType, StoredBatch, control_type_of

from .layout import Partition, Target
from .reading import Report, batches, live_events
from .walk import Sound

OPEN, COMMITTED, ABORTED = "open", "committed", "aborted"
_ENDED = {ControlType.COMMIT: COMMITTED, ControlType.ABORT: ABORTED}


class TransactionRow(msgspec.Struct, frozen=True):
    """One transaction in one partition.

    ``last_offset`` is its marker's, else its last record's; ``records`` counts what is left of it.
    """

    topic: str
    partition: int
    producer_id: int
    epoch: int
    transactional_id: str | None
    state: str
    first_offset: int
    last_offset: int
    records: int
    began_ms: int
    ended_ms: int | None


class _Begun:
    """A transaction whose marker has not come yet."""

    def __init__(self, batch: Sound) -> None:
        header = batch.header
        self.epoch = header.producer_epoch
        self.first_offset = header.base_offset
        self.last_offset = header.last_offset
        self.records = header.record_count
        self.began_ms = header.base_timestamp_ms

    def add(self, batch: Sound) -> None:
        self.last_offset = batch.header.last_offset
        self.records += batch.header.record_count


def decisions(target: Target, report: Report) -> dict[int, TransactionEvent]:
    """The last decision about each producer id, from the journal if there is one."""
    return {
        event.producer_id: event
        for event in live_events(target, report).values()
        if isinstance(event, TransactionEvent)
    }


def transactions(
    target: Target, known: dict[int, TransactionEvent], report: Report
) -> Iterator[TransactionRow]:
    """Every transaction of every partition, those that have ended first, in the order of their ends."""
    for partition in target.partitions:
        yield from _of_partition(partition, known, report)


def _of_partition(
    partition: Partition, known: dict[int, TransactionEvent], report: Report
) -> Iterator[TransactionRow]:
    begun: dict[int, _Begun] = {}
    for _, batch in batches(partition, report):
        header = batch.header
        if header.producer_id < 0:
            continue
        if header.is_control:
            marker = _marker(batch)
            if marker is not None:
                at_work = begun.pop(header.producer_id, None) or _marker_alone(batch)
                at_work.last_offset = header.last_offset
                yield _row(
                    partition, header.producer_id, at_work, _ENDED[marker], header.max_timestamp_ms, known
                )
        elif header.is_transactional:
            if header.producer_id in begun:
                begun[header.producer_id].add(batch)
            else:
                begun[header.producer_id] = _Begun(batch)
    for producer_id, at_work in begun.items():
        event = known.get(producer_id)
        is_decided = event is not None and event.is_decided and event.epoch == at_work.epoch
        state = f"{event.state} decided" if event is not None and is_decided else OPEN
        yield _row(partition, producer_id, at_work, state, None, known)


def _marker(batch: Sound) -> ControlType | None:
    try:
        return control_type_of(StoredBatch(batch.header, batch.data))
    except CorruptBatchError:
        return None  # `verify` reports it


def _marker_alone(marker: Sound) -> _Begun:
    alone = _Begun(marker)
    alone.records = 0
    return alone


def _row(
    partition: Partition,
    producer_id: int,
    found: _Begun,
    state: str,
    ended_ms: int | None,
    known: dict[int, TransactionEvent],
) -> TransactionRow:
    event = known.get(producer_id)
    return TransactionRow(
        topic=partition.topic,
        partition=partition.partition,
        producer_id=producer_id,
        epoch=found.epoch,
        transactional_id=None if event is None else event.transactional_id,
        state=state,
        first_offset=found.first_offset,
        last_offset=found.last_offset,
        records=found.records,
        began_ms=found.began_ms,
        ended_ms=ended_ms,
    )
