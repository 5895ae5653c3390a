"""What the view knows of each partition: its ends, its producers, its open transactions.

    table         key                                       value
    ends          partition key                             LogEnd
    syncs         partition key                             SyncPoint
    producers     partition key · producer id i64           ProducerEntry
    transactions  partition key · first offset i64          producer id, int64

``transactions`` says of the open ones what ``txn_first_offset`` says in ``producers``, in the order of the log.

Every append reads and writes these rows: what they cost is part of what it costs. So transactions are begun bare
(see ``Environment``), and what was decoded or written last is kept with its stored bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container
from typing import TYPE_CHECKING

import lmdb

from ..producer_state import NO_TRANSACTION, ProducerEntry, decode_entry, encode_entry
from .environment import delete_prefix
from .message_ids import IdUpdate, MessageIds
from .partitions import (
    LOG_END,
    PARTITION_KEY_BYTES,
    SYNC_POINT,
    TOPIC_ID_BYTES,
    LogEnd,
    OpenTransaction,
    PartitionState,
    SyncPoint,
)
from .seal import seal

if TYPE_CHECKING:
    from .environment import Environment, Transaction

MAX_PRODUCER_ID = 1 << 62  # we give out none above it; a client may write what it likes

_PRODUCER_ID = struct.Struct(">q")
_OFFSET = struct.Struct(">q")


class PartitionRows:
    """The rows of all partitions; a partition is named by its key."""

    def __init__(self, environment: Environment, message_ids: MessageIds) -> None:
        self._environment = environment
        self._gate = environment.gate
        self._lmdb = environment.lmdb
        self._writing = environment.writing
        self._message_ids = message_ids
        tables = environment.tables
        self._ends, self._syncs = tables["ends"], tables["syncs"]
        self._producers, self._transactions = tables["producers"], tables["transactions"]
        # What was decoded or written last, with its stored bytes: the same bytes mean the same value. Each
        # item is replaced whole, so threads need no lock.
        self._known_ends: dict[bytes, tuple[bytes, LogEnd]] = {}
        self._known_syncs: dict[bytes, tuple[bytes, SyncPoint]] = {}
        self._known_producers: dict[bytes, tuple[bytes, bytes, ProducerEntry]] = {}

    # Ends -----------------------------------------------------------------------------------------

    def state(self, key: bytes) -> PartitionState | None:
        """The state of a partition, both halves as of one moment; None when there is no such partition."""
        self._gate.enter()
        try:
            with self._lmdb.begin() as transaction:
                return self.state_in(transaction, key)
        except lmdb.Error as error:
            raise self._environment.translated(error) from error
        finally:
            self._gate.leave()

    def check(self) -> None:
        """Read both halves of every partition once.

        Raises:
            ViewError: one is the other, whose key is the same, so that its checksum is right.
        """
        for table, layout in ((self._ends, LOG_END), (self._syncs, SYNC_POINT)):
            for key, payload in self._environment.items(b"", table):
                if len(payload) != layout.size:
                    raise self._environment.damaged(f"the value of {key!r} has {len(payload)} bytes")

    def state_in(self, transaction: Transaction, key: bytes) -> PartitionState | None:
        """The same, as *transaction* sees it."""
        end = transaction.get(key, db=self._ends)
        sync = transaction.get(key, db=self._syncs)
        if end is None or sync is None:
            return None
        return PartitionState(self._log_end(key, end), self._sync_point(key, sync))

    def synced_offsets(self) -> dict[bytes, int]:
        """Up to where each partition is known to be on the disk, by key: all of them in one pass over the table."""
        found = self._environment.items(b"", self._syncs)
        return {key: SyncPoint._make(SYNC_POINT.unpack(payload)).synced_offset for key, payload in found}

    def _log_end(self, key: bytes, stored: bytes) -> LogEnd:
        """The value in *stored*, decoded once for as long as it stays the same: 2 µs saved an append."""
        known = self._known_ends.get(key)
        if known is not None and known[0] == stored:
            return known[1]
        end = LogEnd._make(LOG_END.unpack(self._environment.unseal(key, stored)))
        self._known_ends[key] = (stored, end)
        return end

    def _sync_point(self, key: bytes, stored: bytes) -> SyncPoint:
        known = self._known_syncs.get(key)
        if known is not None and known[0] == stored:
            return known[1]
        sync = SyncPoint._make(SYNC_POINT.unpack(self._environment.unseal(key, stored)))
        self._known_syncs[key] = (stored, sync)
        return sync

    def publish_append(
        self,
        key: bytes,
        end: LogEnd,
        producer_id: int = -1,
        entry: ProducerEntry | None = None,
        closed_offset: int = NO_TRANSACTION,
        ids: IdUpdate | None = None,
    ) -> bool:
        """Put a log's new end, and the entry of the producer who appended, in one transaction.

        *closed_offset* is the first offset of a transaction that ends with it, *ids* those it takes. False,
        and nothing is put, when there is no such partition: its topic was deleted meanwhile.
        """
        stored_end = seal(key, LOG_END.pack(*end))
        self._gate.enter()
        try:
            with self._writing, self._lmdb.begin(write=True) as transaction:
                if transaction.get(key, db=self._ends) is None:
                    return False
                transaction.put(key, stored_end, db=self._ends)
                if entry is not None:
                    producer_key = key + _PRODUCER_ID.pack(producer_id)
                    stored_entry = seal(producer_key, encode_entry(entry))
                    transaction.put(producer_key, stored_entry, db=self._producers)
                    if entry.txn_first_offset >= 0:
                        self._put_transaction(transaction, key, entry.txn_first_offset, producer_id)
                if closed_offset >= 0:
                    transaction.delete(key + _OFFSET.pack(closed_offset), db=self._transactions)
                if ids is not None:
                    self._message_ids.apply(transaction, ids)
        except lmdb.Error as error:
            raise self._environment.translated(error) from error
        finally:
            self._gate.leave()
        self._known_ends[key] = (stored_end, end)
        if entry is not None:
            self._known_producers[key] = (producer_key, stored_entry, entry)
        return True

    def publish_sync(
        self, key: bytes, sync: SyncPoint, also: Callable[[Transaction], object] | None = None
    ) -> bool:
        """Put what is on the disk of a partition, and in the same transaction what *also* puts.

        False, and nothing is put, when there is no such partition.
        """
        stored = seal(key, SYNC_POINT.pack(*sync))
        self._gate.enter()
        try:
            with self._writing, self._lmdb.begin(write=True) as transaction:
                if transaction.get(key, db=self._syncs) is None:
                    return False
                transaction.put(key, stored, db=self._syncs)
                if also is not None:
                    also(transaction)
        except lmdb.Error as error:
            raise self._environment.translated(error) from error
        finally:
            self._gate.leave()
        self._known_syncs[key] = (stored, sync)
        return True

    def put_log_end(self, transaction: Transaction, key: bytes, end: LogEnd) -> None:
        transaction.put(key, seal(key, LOG_END.pack(*end)), db=self._ends)

    def put_sync_point(self, transaction: Transaction, key: bytes, sync: SyncPoint) -> None:
        transaction.put(key, seal(key, SYNC_POINT.pack(*sync)), db=self._syncs)

    def failed(self) -> list[bytes]:
        """The keys of the partitions whose disk sync failed."""
        return [
            key for key, payload in self._environment.items(b"", self._syncs) if SYNC_POINT.unpack(payload)[2]
        ]

    def drop(self, transaction: Transaction, key: bytes) -> None:
        """Forget a partition: its ends, producers and transactions. See ``View.drop_partition``."""
        transaction.delete(key, db=self._ends)
        transaction.delete(key, db=self._syncs)
        for known in (self._known_ends, self._known_syncs, self._known_producers):
            known.pop(key, None)
        self._drop_producers(transaction, key)

    def keep_known(self, topic_ids: Container[bytes]) -> None:
        """Forget what was decoded of the partitions of other topics: some were deleted, perhaps by another process."""
        for known in (self._known_ends, self._known_syncs, self._known_producers):
            for key in list(known):  # other threads add to it meanwhile
                if key[:TOPIC_ID_BYTES] not in topic_ids:
                    known.pop(key, None)

    # Producers ------------------------------------------------------------------------------------

    def producer(self, partition: bytes, producer_id: int) -> ProducerEntry | None:
        key = partition + _PRODUCER_ID.pack(producer_id)
        self._gate.enter()
        try:
            with self._lmdb.begin() as transaction:
                stored = transaction.get(key, db=self._producers)
        except lmdb.Error as error:
            raise self._environment.translated(error) from error
        finally:
            self._gate.leave()
        return self._producer_entry(key, stored)

    def _producer_entry(self, key: bytes, stored: bytes | None) -> ProducerEntry | None:
        if stored is None:
            return None
        known = self._known_producers.get(key[: -_PRODUCER_ID.size])
        if known is not None and known[0] == key and known[1] == stored:
            return known[2]
        return decode_entry(self._environment.unseal(key, stored))

    def append_state(
        self, partition: bytes, producer_id: int
    ) -> tuple[PartitionState | None, ProducerEntry | None]:
        """``state`` and ``producer`` in one transaction; no producer is asked for where *producer_id* is negative."""
        if producer_id < 0:
            return self.state(partition), None
        key = partition + _PRODUCER_ID.pack(producer_id)
        self._gate.enter()
        try:
            with self._lmdb.begin() as transaction:
                state = self.state_in(transaction, partition)
                entry = transaction.get(key, db=self._producers)
        except lmdb.Error as error:
            raise self._environment.translated(error) from error
        finally:
            self._gate.leave()
        return (None, None) if state is None else (state, self._producer_entry(key, entry))

    def producers(self, partition: bytes) -> dict[int, ProducerEntry]:
        """Every producer that the partition remembers, by producer id."""
        return {
            _PRODUCER_ID.unpack_from(key, len(partition))[0]: decode_entry(payload)
            for key, payload in self._environment.items(partition, self._producers)
        }

    def used_producer_ids_end(self) -> int:
        """An id above every one that any partition remembers, but for absurd ones; 0 when none does."""
        end = 0
        with self._environment.read() as transaction, transaction.cursor(db=self._producers) as cursor:
            for key in cursor.iternext(values=False):
                producer_id = _PRODUCER_ID.unpack_from(key, PARTITION_KEY_BYTES)[0]
                end = max(end, producer_id + 1 if producer_id < MAX_PRODUCER_ID else 0)
        return end

    def put_producer(
        self, transaction: Transaction, partition: bytes, producer_id: int, entry: ProducerEntry
    ) -> None:
        """Put a producer's entry, and keep the table of open transactions in line with it."""
        key = partition + _PRODUCER_ID.pack(producer_id)
        before = self._environment.value_in(transaction, key, self._producers)
        if before is not None and (offset := decode_entry(before).txn_first_offset) >= 0:
            transaction.delete(partition + _OFFSET.pack(offset), db=self._transactions)
        transaction.put(key, seal(key, encode_entry(entry)), db=self._producers)
        if entry.txn_first_offset >= 0:
            self._put_transaction(transaction, partition, entry.txn_first_offset, producer_id)

    def replace_producers(
        self, transaction: Transaction, partition: bytes, entries: dict[int, ProducerEntry]
    ) -> None:
        self._drop_producers(transaction, partition)
        for producer_id, entry in entries.items():
            self.put_producer(transaction, partition, producer_id, entry)

    def drop_producer(self, transaction: Transaction, partition: bytes, producer_id: int) -> None:
        transaction.delete(partition + _PRODUCER_ID.pack(producer_id), db=self._producers)

    def _drop_producers(self, transaction: Transaction, partition: bytes) -> None:
        for table in (self._producers, self._transactions):
            delete_prefix(transaction, table, partition)

    # Open transactions ----------------------------------------------------------------------------

    def open_transactions(self, partition: bytes = b"") -> list[OpenTransaction]:
        """The transactions without a marker, of one partition (by first offset) or of all."""
        return [
            OpenTransaction(
                key[:PARTITION_KEY_BYTES],
                _OFFSET.unpack_from(key, PARTITION_KEY_BYTES)[0],
                _PRODUCER_ID.unpack(payload)[0],
            )
            for key, payload in self._environment.items(partition, self._transactions)
        ]

    def _put_transaction(
        self, transaction: Transaction, partition: bytes, first_offset: int, producer_id: int
    ) -> None:
        key = partition + _OFFSET.pack(first_offset)
        transaction.put(key, seal(key, _PRODUCER_ID.pack(producer_id)), db=self._transactions)
