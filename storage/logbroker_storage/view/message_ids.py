"""The view's two tables of message ids: who was first, and who grows too old.

    table         key                                             value
    message_ids   topic id, 16 · the id                           FirstRecord
    message_ages  topic id, 16 · sent_ms i64 · partition i32 ·    the id
                    offset i64

    FirstRecord, big-endian
     0  partition      int32
     4  offset         int64
    12  timestamp_ms   int64   of the record
    20  sent_ms        int64   when its window began
    28  producer_id    int64   of the transaction that it is part of, -1 without one

The second table has the ids in the order in which they age, so that old ones go with new ones coming: a topic
keeps as many as were sent in its window, and a few more. An id that was taken anew leaves the entry of its old
age behind, which then names another record and is passed over when its time comes.

Invariant: each id of the first table has an entry of its age in the second.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..message_ids import IdentifiedRecord
from .seal import seal

if TYPE_CHECKING:
    from .environment import Environment, Transaction

FIRST_RECORD = struct.Struct(">iqqqq")
AGE = struct.Struct(">qiq")
LAST_APPEND = struct.Struct(">q")  # a partition's number

TOPIC_ID_BYTES = 16
NO_PRODUCER = -1
SPARE_EXPIRED = 30  # aged ids that an append removes beside twice as many as it adds
DROPPED_AT_ONCE = 1000  # ids of a deleted topic in one transaction


def _last_append_key(topic_id: bytes) -> bytes:
    """Of the table ``meta``."""
    return b"ids\0" + topic_id


class FirstRecord(NamedTuple):
    """The record that has taken an id."""

    partition: int
    offset: int
    timestamp_ms: int
    sent_ms: int
    producer_id: int


class IdUpdate(NamedTuple):
    """The ids that an append adds to a topic's, and before when those were sent that may go."""

    topic_id: bytes
    firsts: Mapping[bytes, FirstRecord]
    expired_before_ms: int


def id_update(
    topic_id: bytes,
    partition: int,
    records: Iterable[IdentifiedRecord],
    *,
    base_offset: int,
    producer_id: int,
    window_ms: int,
    now_ms: int,
) -> IdUpdate | None:
    """What *records* (their offsets relative to *base_offset*) add to their topic; None where it has no window."""
    if not window_ms:
        return None
    firsts = {
        record.message_id: FirstRecord(
            partition,
            base_offset + record.offset,
            record.timestamp_ms,
            # A clock that was wrong, or a client's invention, must not keep an id for ever.
            max(0, min(record.sent_ms, now_ms)),
            producer_id,
        )
        for record in records
    }
    return IdUpdate(topic_id, firsts, now_ms - window_ms) if firsts else None


class MessageIds:
    """The two tables. What takes a transaction is part of the caller's."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._ids = environment.tables["message_ids"]
        self._ages = environment.tables["message_ages"]

    # The next append ------------------------------------------------------------------------------

    def first_records(self, topic_id: bytes, ids: Iterable[bytes]) -> dict[bytes, FirstRecord]:
        """Those of *ids* that somebody has taken; whether that still counts is not looked at."""
        with self._environment.read() as transaction:
            return self._find(transaction, topic_id, ids)

    def last_append(self, topic_id: bytes) -> int | None:
        """The partition that records with an id were last appended to, or were about to be."""
        payload = self._environment.meta_bytes(_last_append_key(topic_id))
        return None if payload is None else int(LAST_APPEND.unpack(payload)[0])

    def note_append(self, topic_id: bytes, partition: int) -> None:
        """Records with an id are about to be appended to *partition*."""
        with self._environment.write() as transaction:
            self._environment.put_meta_bytes(
                transaction, _last_append_key(topic_id), LAST_APPEND.pack(partition)
            )

    def restore(self, update: IdUpdate) -> None:
        """Add those ids that no later record has taken; partitions are restored one after the other."""
        with self._environment.write() as transaction:
            known = self._find(transaction, update.topic_id, update.firsts)
            firsts = {
                message_id: first
                for message_id, first in update.firsts.items()
                if message_id not in known or known[message_id].sent_ms < first.sent_ms
            }
            self.apply(transaction, update._replace(firsts=firsts))

    # Adding and removing --------------------------------------------------------------------------

    def _find(
        self, transaction: Transaction, topic_id: bytes, ids: Iterable[bytes]
    ) -> dict[bytes, FirstRecord]:
        found: dict[bytes, FirstRecord] = {}
        for message_id in ids:
            stored = transaction.get(topic_id + message_id, db=self._ids)
            if stored is not None:
                found[message_id] = self._first(topic_id + message_id, stored)
        return found

    def _first(self, key: bytes, stored: bytes) -> FirstRecord:
        return FirstRecord._make(FIRST_RECORD.unpack(self._environment.unseal(key, stored)))

    def apply(self, transaction: Transaction, update: IdUpdate) -> None:
        """Add ids, whoever had them before, and remove some of those that are too old."""
        topic_id = update.topic_id
        for message_id, first in update.firsts.items():
            key = topic_id + message_id
            transaction.put(key, seal(key, FIRST_RECORD.pack(*first)), db=self._ids)
            age_key = topic_id + AGE.pack(first.sent_ms, first.partition, first.offset)
            transaction.put(age_key, seal(age_key, message_id), db=self._ages)
        self._remove(
            transaction,
            topic_id,
            end=topic_id + AGE.pack(max(0, update.expired_before_ms), 0, 0),
            limit=2 * len(update.firsts) + SPARE_EXPIRED,
        )

    def _remove(self, transaction: Transaction, topic_id: bytes, *, end: bytes | None, limit: int) -> int:
        """Remove the oldest ids of a topic, up to the age *end* and *limit* of them; how many."""
        count = 0
        with transaction.cursor(db=self._ages) as cursor:
            found = cursor.set_range(topic_id)
            while found and count < limit:
                age_key = cursor.key()
                if not age_key.startswith(topic_id) or (end is not None and age_key >= end):
                    break
                self._forget(transaction, age_key, cursor.value())
                found = cursor.delete()
                count += 1
        return count

    def _forget(self, transaction: Transaction, age_key: bytes, stored: bytes) -> None:
        """Remove the id whose age this is, unless another record has taken it since."""
        held = self._held(transaction, age_key, stored)
        if held is not None:
            transaction.delete(held[0], db=self._ids)

    def _held(
        self, transaction: Transaction, age_key: bytes, stored: bytes
    ) -> tuple[bytes, FirstRecord] | None:
        """The key of the id whose age this is, and its record; None where another record has taken it since."""
        key = age_key[:TOPIC_ID_BYTES] + self._environment.unseal(age_key, stored)
        value = transaction.get(key, db=self._ids)
        first = None if value is None else self._first(key, value)
        _, partition, offset = AGE.unpack_from(age_key, TOPIC_ID_BYTES)
        return None if first is None or first[:2] != (partition, offset) else (key, first)

    def drop_topic(self, topic_id: bytes) -> None:
        """Forget the ids of a topic that is gone, some at a time."""
        with self._environment.write() as transaction:
            self._environment.delete_meta(transaction, _last_append_key(topic_id))
        count = DROPPED_AT_ONCE
        while count == DROPPED_AT_ONCE:
            with self._environment.write() as transaction:
                count = self._remove(transaction, topic_id, end=None, limit=DROPPED_AT_ONCE)

    def drop(
        self, topic_id: bytes, partition: int, end_offset: int, wanted: Callable[[FirstRecord], bool]
    ) -> None:
        """Remove the *wanted* ids of records of one partition below *end_offset*.

        All ids of the topic are looked at, some at a time: nobody is held up, and no page of the view kept for long.
        """
        begin = topic_id
        while begin:
            begin, ages = self._look_for(topic_id, begin, partition, end_offset, wanted)
            if ages:
                with self._environment.write() as transaction:
                    for age_key in ages:
                        stored = transaction.get(age_key, db=self._ages)
                        if stored is not None:
                            self._forget(transaction, age_key, stored)
                            transaction.delete(age_key, db=self._ages)

    def _look_for(
        self,
        topic_id: bytes,
        begin: bytes,
        partition: int,
        end_offset: int,
        wanted: Callable[[FirstRecord], bool],
    ) -> tuple[bytes, list[bytes]]:
        """The ages of some of the *wanted* ids, see ``drop``, and where to go on: b"" at the end."""
        ages: list[bytes] = []
        with self._environment.read() as transaction, transaction.cursor(db=self._ages) as cursor:
            found = cursor.set_range(begin)
            for _ in range(DROPPED_AT_ONCE):
                if not found or not cursor.key().startswith(topic_id):
                    return b"", ages
                age_key = cursor.key()
                _, held_partition, held_offset = AGE.unpack_from(age_key, TOPIC_ID_BYTES)
                if held_partition == partition and held_offset < end_offset:
                    held = self._held(transaction, age_key, cursor.value())
                    if held is not None and wanted(held[1]):
                        ages.append(age_key)
                found = cursor.next()
            return (cursor.key() if found else b""), ages

    def drop_from(self, transaction: Transaction, topic_id: bytes, partition: int, offset: int) -> None:
        """Remove the ids of records that a partition no longer has: those at *offset* and behind."""
        with transaction.cursor(db=self._ages) as cursor:
            found = cursor.set_range(topic_id)
            while found and cursor.key().startswith(topic_id):
                _, held_partition, held_offset = AGE.unpack_from(cursor.key(), TOPIC_ID_BYTES)
                if held_partition == partition and held_offset >= offset:
                    self._forget(transaction, cursor.key(), cursor.value())
                    found = cursor.delete()
                else:
                    found = cursor.next()
