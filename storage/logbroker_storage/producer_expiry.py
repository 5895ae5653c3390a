"""Forgetting producers of which nothing was heard for a day, by what passes of the cleaner saw.

The timestamp of a producer's last batch does not tell when it wrote: it is the client's, who may send what is
years old, and neither a marker nor a fence that a snapshot kept has one. A producer that is forgotten too early
is one whose batch, sent again, is appended twice. So a pass first notes who looks silent, and a producer goes when
it is still the same a day later.

    in the view              value                                             life
    silences NUL <log key>   producer id -> epoch, last offset, since when     gone with the view: the day begins anew
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from .local_log import LocalLog
from .producer_state import ProducerEntry

PRODUCER_EXPIRATION_MS = 86_400_000  # Kafka's producer.id.expiration.ms


class Silence(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A producer as a pass found it at *since_ms*."""

    epoch: int
    last_offset: int
    since_ms: int

    def lasts(self, entry: ProducerEntry) -> bool:
        """Whether nothing was heard of the producer since."""
        return (entry.epoch, entry.last_offset) == (self.epoch, self.last_offset)


_DECODER = msgspec.msgpack.Decoder(dict[int, Silence])


def expire_producers(log: LocalLog, *, named: Collection[int], now_ms: int) -> None:
    """One pass over the producers of *log*. Those of *named*, and those in a transaction, are never forgotten."""
    before = _noted(log)
    silences = silent_producers(log.view.partitions.producers(log.key), before, named=named, now_ms=now_ms)
    due = {
        producer_id: silence
        for producer_id, silence in silences.items()
        if now_ms - silence.since_ms >= PRODUCER_EXPIRATION_MS
    }
    if due:
        _forget(log, due)
    left = {producer_id: silence for producer_id, silence in silences.items() if producer_id not in due}
    if left != before:
        with log.view.write() as transaction:
            log.view.put_meta_bytes(transaction, _key(log), msgspec.msgpack.encode(left))


def silent_producers(
    entries: Mapping[int, ProducerEntry],
    before: Mapping[int, Silence],
    *,
    named: Collection[int],
    now_ms: int,
) -> dict[int, Silence]:
    """Those of *entries* that may be silent, and since when that is known; *before* is what the last pass knew."""
    found: dict[int, Silence] = {}
    for producer_id, entry in entries.items():
        is_young = entry.timestamp_ms >= now_ms - PRODUCER_EXPIRATION_MS
        if is_young or entry.txn_first_offset >= 0 or producer_id in named:
            continue
        silence = before.get(producer_id)
        if silence is None or not silence.lasts(entry):
            silence = Silence(entry.epoch, entry.last_offset, now_ms)
        found[producer_id] = silence
    return found


def _forget(log: LocalLog, silences: Mapping[int, Silence]) -> None:
    with log.append_lock:
        entries = log.view.partitions.producers(log.key)  # some may have begun to write meanwhile
        with log.view.write() as transaction:
            for producer_id, silence in silences.items():
                entry = entries.get(producer_id)
                if entry is not None and entry.txn_first_offset < 0 and silence.lasts(entry):
                    log.view.partitions.drop_producer(transaction, log.key, producer_id)


def _noted(log: LocalLog) -> dict[int, Silence]:
    stored = log.view.meta_bytes(_key(log))
    return _DECODER.decode(stored) if stored is not None else {}


def _key(log: LocalLog) -> bytes:
    return b"silences\0" + log.key
