"""The LMDB environment of a data directory: one table a concern, every value under a checksum.

    table         key                            value                      life
    meta          name                           int64, or the boot id      rebuilt
    ends          partition key                  LogEnd                     rebuilt from the log
    syncs         partition key                  SyncPoint                  rebuilt from the log
    producers     partition key + producer id    ProducerEntry              rebuilt from the log
    transactions  partition key + first offset   producer id                rebuilt from the log
    journal       event key                      event, as in the journal   rebuilt from the journal
    state         partition key + user's key     user's value               rebuilt from the partition's log
    queues        partition key + queue's key    set by the broker          rebuilt from the journal
    message_ids   see ``message_ids``            see ``message_ids``        rebuilt from the log
    message_ages  see ``message_ids``            see ``message_ids``        rebuilt from the log
    volatile      set by the broker              set by the broker          gone with the view

Of the volatile keys, those that begin with ``OF_PARTITION`` and a partition's key go with the partition.

``transactions`` says of the open ones what ``txn_first_offset`` says in ``producers``, in the order of the log.

A stored value is ``crc32c(key + payload)``, 4 bytes, then the payload: LMDB does not notice flipped
bits, and a wrong log end would be worse than none. A value that fails its check marks the view as
damaged (a file beside it); the next process that opens the directory alone rebuilds it.

The environment runs without any sync. It survives the death of every process (the pages belong to the
kernel), but not of the machine; the boot id in ``meta`` tells the two apart.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import lmdb

from ..errors import ClosedError, LogbrokerError, ViewError, WriteFailedError
from ..events import Event, decode_event
from ..producer_state import NO_TRANSACTION, ProducerEntry, decode_entry, encode_entry
from .gate import Gate
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
from .seal import seal, unsealed
from .table_rows import TableRows

logger = logging.getLogger("logbroker.storage")

VIEW_FORMAT = 3
MAP_BYTES = 16 << 30  # sparse: the file grows only by what is stored
MAX_READERS = 1024
DAMAGED_MARK = "damaged"
OF_PARTITION = b"of-partition\0"
LOCK_FILE = "lock.mdb"
LOCK_BYTES = (MAX_READERS + 8) * 64  # a cache line for each reader's slot, and some for LMDB's own

TABLES = (
    "meta",
    "ends",
    "syncs",
    "producers",
    "transactions",
    "journal",
    "volatile",
    "state",
    "queues",
    "message_ids",
    "message_ages",
)
_INT = struct.Struct(">q")
MAX_PRODUCER_ID = 1 << 62  # we give out none above it; a client may write what it likes
STATE_SLICE = 1000  # items of the state read in one transaction

_PRODUCER_ID = struct.Struct(">q")
_OFFSET = struct.Struct(">q")

AnyKind = TypeVar("AnyKind", bound=Event)

if TYPE_CHECKING:
    from lmdb import _Database as Table

    Transaction = lmdb.Transaction[bytes]


# What LMDB raises when its pages do not hold together; anything else is the system's (ENOSPC, EIO, …).
_DAMAGE = (
    lmdb.BadTxnError,
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageFullError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)


def _delete_prefix(transaction: Transaction, table: Table, prefix: bytes) -> None:
    with transaction.cursor(db=table) as cursor:
        found = cursor.set_range(prefix)
        while found and cursor.key().startswith(prefix):
            found = cursor.delete()


def _state_meta(partition: bytes) -> bytes:
    return b"state\0" + partition


class View:
    """One process's handle on the view. Safe across threads; unusable in a forked child."""

    def __init__(self, path: str) -> None:
        """Open the environment at *path* (a directory), creating it when it is not there.

        Raises:
            ViewError: LMDB cannot read what is there.
            WriteFailedError: the system refused (space, descriptors, memory).
        """
        self.path = path
        self.gate = Gate()  # every transaction begins and ends inside
        self._closed = False
        try:
            self._env = lmdb.open(
                path,
                map_size=MAP_BYTES,
                max_dbs=len(TABLES),
                max_readers=MAX_READERS,
                # A forked child that opens the directory must first close the environment it inherited,
                # which frees its parent's reader slots: so no slot may be kept from one read to the next.
                max_spare_txns=0,
                sync=False,
                metasync=False,
                mode=0o644,
                lib_version=0,
            )
        except lmdb.Error as error:
            raise self._not_opened(error) from error
        try:
            tables = [self._env.open_db(name.encode()) for name in TABLES]
        except lmdb.Error as error:
            self._env.close()
            raise self._not_opened(error) from error
        self._tables = tables
        self._meta, self._ends, self._syncs, self._producers, *others = tables
        self._transactions, self._journal, self._volatile, self._state, self._queues, ids, ages = others
        self.message_ids = MessageIds(self, ids, ages)
        self.forget_dead_readers()
        # What was decoded or written last, with its stored bytes: the same bytes mean the same value. Each
        # item is replaced whole, so threads need no lock.
        self._known_ends: dict[bytes, tuple[bytes, LogEnd]] = {}
        self._known_syncs: dict[bytes, tuple[bytes, SyncPoint]] = {}
        self._known_producers: dict[bytes, tuple[bytes, bytes, ProducerEntry]] = {}

    def _not_opened(self, error: lmdb.Error) -> LogbrokerError:
        # A code that LMDB does not know is the system's, as are these two.
        if type(error) is lmdb.Error or isinstance(error, (lmdb.DiskError, lmdb.MemoryError)):
            return self._failed(error)
        return ViewError(f"the view at {self.path} cannot be opened: {error}")

    def close(self) -> None:
        self._closed = True
        self._env.close()

    def forget_dead_readers(self) -> None:
        """Free the pages that a process pins which was killed in the middle of a read.

        Until somebody does, no page is used again that was freed since, and the file grows with every write.
        """
        self.gate.enter()
        try:
            self._env.reader_check()
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            self.gate.leave()

    # Transactions ---------------------------------------------------------------------------------

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """One write transaction, which no other process can have at the same time. Keep it to microseconds."""
        self.gate.enter()
        try:
            with self._env.begin(write=True) as transaction:
                yield transaction
        except lmdb.MapFullError as error:
            raise self._full() from error
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            self.gate.leave()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """One read transaction: everything as of one moment. Where a microsecond does not matter."""
        self.gate.enter()
        try:
            with self._env.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            self.gate.leave()

    def _full(self) -> ViewError:
        return ViewError(
            f"the view at {self.path} is full ({MAP_BYTES} bytes); close every process and delete it: "
            "it is rebuilt from the logs"
        )

    def _failed(self, error: lmdb.Error) -> LogbrokerError:
        """What an error of LMDB means: closed meanwhile, pages damaged, or the system refused a write."""
        if self._closed:
            return ClosedError("the broker was closed while it was in use; call logbroker.open() again")
        if isinstance(error, _DAMAGE):
            return self._damaged(str(error))
        return WriteFailedError(
            f"the view at {self.path} could not be written: {error}; mend the cause (free space, limits) and try again"
        )

    def _damaged(self, what: str) -> ViewError:
        path = os.path.join(self.path, DAMAGED_MARK)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        except OSError as error:  # a full disk, say; whoever opens it next checks it anyway
            logger.warning("%s cannot be made: %s", path, error)
        return ViewError(
            f"the view at {self.path} is damaged ({what}); close every process that uses the directory and "
            "open it again: the view is rebuilt from the logs"
        )

    def _get(self, transaction: Transaction, key: bytes, table: Table) -> bytes | None:
        stored = transaction.get(key, db=table)
        return None if stored is None else self.unseal(key, stored)

    def unseal(self, key: bytes, stored: bytes) -> bytes:
        """The payload in *stored*.

        Raises:
            ViewError: it fails its checksum.
        """
        payload = unsealed(key, stored)
        if payload is None:
            raise self._damaged(f"the value of key {key!r} fails its checksum")
        return payload

    def _read(self, key: bytes, table: Table) -> bytes | None:
        self.gate.enter()
        try:
            with self._env.begin() as transaction:
                stored = transaction.get(key, db=table)
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            self.gate.leave()
        return None if stored is None else self.unseal(key, stored)

    def entries(self) -> int:
        """How many values the view holds."""
        self.gate.enter()
        try:
            with self._env.begin() as transaction:
                return sum(transaction.stat(table)["entries"] for table in self._tables)
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            self.gate.leave()

    def _items(
        self, prefix: bytes, table: Table, *, begin: bytes | None = None, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """The items whose keys begin with *prefix*, ascending; from *begin* on, and *limit* of them at most."""
        found: list[tuple[bytes, bytes]] = []
        self.gate.enter()
        try:
            with self._env.begin(db=table) as transaction, transaction.cursor() as cursor:
                if not cursor.set_range(prefix if begin is None else begin):
                    return found
                for key, stored in cursor:
                    if not key.startswith(prefix) or len(found) == limit:
                        break
                    found.append((key, stored))
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            self.gate.leave()
        return [(key, self.unseal(key, stored)) for key, stored in found]

    # Meta -----------------------------------------------------------------------------------------

    def meta_bytes(self, name: bytes) -> bytes | None:
        return self._read(name, self._meta)

    def meta_int(self, name: bytes) -> int:
        """A counter; 0 when it was never set."""
        payload = self._read(name, self._meta)
        return 0 if payload is None else int(_INT.unpack(payload)[0])

    def meta_int_in(self, transaction: Transaction, name: bytes) -> int:
        """A counter as *transaction* sees it."""
        payload = self._get(transaction, name, self._meta)
        return 0 if payload is None else int(_INT.unpack(payload)[0])

    def put_meta_bytes(self, transaction: Transaction, name: bytes, payload: bytes) -> None:
        transaction.put(name, seal(name, payload), db=self._meta)

    def put_meta_int(self, transaction: Transaction, name: bytes, value: int) -> None:
        self.put_meta_bytes(transaction, name, _INT.pack(value))

    def delete_meta(self, transaction: Transaction, name: bytes) -> None:
        transaction.delete(name, db=self._meta)

    # Partitions -----------------------------------------------------------------------------------

    def partition(self, key: bytes) -> PartitionState | None:
        """The state of a partition, both halves as of one moment; None when there is no such partition."""
        self.gate.enter()
        try:
            with self._env.begin() as transaction:
                return self.partition_in(transaction, key)
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            self.gate.leave()

    def partition_in(self, transaction: Transaction, key: bytes) -> PartitionState | None:
        """The same, as *transaction* sees it."""
        end = transaction.get(key, db=self._ends)
        sync = transaction.get(key, db=self._syncs)
        if end is None or sync is None:
            return None
        return PartitionState(self._log_end(key, end), self._sync_point(key, sync))

    def _log_end(self, key: bytes, stored: bytes) -> LogEnd:
        """The value in *stored*, decoded once for as long as it stays the same: 2 µs saved an append."""
        known = self._known_ends.get(key)
        if known is not None and known[0] == stored:
            return known[1]
        end = LogEnd._make(LOG_END.unpack(self.unseal(key, stored)))
        self._known_ends[key] = (stored, end)
        return end

    def _sync_point(self, key: bytes, stored: bytes) -> SyncPoint:
        known = self._known_syncs.get(key)
        if known is not None and known[0] == stored:
            return known[1]
        sync = SyncPoint._make(SYNC_POINT.unpack(self.unseal(key, stored)))
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
        self.gate.enter()
        try:
            with self._env.begin(write=True) as transaction:
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
                    self.message_ids.apply(transaction, ids)
        except lmdb.MapFullError as error:
            raise self._full() from error
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            self.gate.leave()
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
        self.gate.enter()
        try:
            with self._env.begin(write=True) as transaction:
                if transaction.get(key, db=self._syncs) is None:
                    return False
                transaction.put(key, stored, db=self._syncs)
                if also is not None:
                    also(transaction)
        except lmdb.MapFullError as error:
            raise self._full() from error
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            self.gate.leave()
        self._known_syncs[key] = (stored, sync)
        return True

    def put_log_end(self, transaction: Transaction, key: bytes, end: LogEnd) -> None:
        transaction.put(key, seal(key, LOG_END.pack(*end)), db=self._ends)

    def put_sync_point(self, transaction: Transaction, key: bytes, sync: SyncPoint) -> None:
        transaction.put(key, seal(key, SYNC_POINT.pack(*sync)), db=self._syncs)

    def failed_partitions(self) -> list[bytes]:
        """The keys of the partitions whose disk sync failed."""
        return [key for key, payload in self._items(b"", self._syncs) if SYNC_POINT.unpack(payload)[2]]

    def drop_partition(self, transaction: Transaction, key: bytes) -> None:
        """Forget a partition: its ends, sync point, producers, transactions, state, queues and volatile facts."""
        transaction.delete(key, db=self._ends)
        transaction.delete(key, db=self._syncs)
        for known in (self._known_ends, self._known_syncs, self._known_producers):
            known.pop(key, None)
        self._drop_producers(transaction, key)
        self._drop_state(transaction, key)
        _delete_prefix(transaction, self._queues, key)
        _delete_prefix(transaction, self._volatile, OF_PARTITION + key)

    def keep_known(self, topic_ids: Container[bytes]) -> None:
        """Forget what was decoded of the partitions of other topics: some were deleted, perhaps by another process."""
        for known in (self._known_ends, self._known_syncs, self._known_producers):
            for key in list(known):  # other threads add to it meanwhile
                if key[:TOPIC_ID_BYTES] not in topic_ids:
                    known.pop(key, None)

    # Producers ------------------------------------------------------------------------------------

    def producer(self, partition: bytes, producer_id: int) -> ProducerEntry | None:
        key = partition + _PRODUCER_ID.pack(producer_id)
        self.gate.enter()
        try:
            with self._env.begin() as transaction:
                stored = transaction.get(key, db=self._producers)
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            self.gate.leave()
        return self._producer_entry(key, stored)

    def _producer_entry(self, key: bytes, stored: bytes | None) -> ProducerEntry | None:
        if stored is None:
            return None
        known = self._known_producers.get(key[: -_PRODUCER_ID.size])
        if known is not None and known[0] == key and known[1] == stored:
            return known[2]
        return decode_entry(self.unseal(key, stored))

    def append_state(
        self, partition: bytes, producer_id: int
    ) -> tuple[PartitionState | None, ProducerEntry | None]:
        """Both of the above in one transaction; no producer is asked for where *producer_id* is negative."""
        if producer_id < 0:
            return self.partition(partition), None
        key = partition + _PRODUCER_ID.pack(producer_id)
        self.gate.enter()
        try:
            with self._env.begin() as transaction:
                state = self.partition_in(transaction, partition)
                entry = transaction.get(key, db=self._producers)
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            self.gate.leave()
        return (None, None) if state is None else (state, self._producer_entry(key, entry))

    def producers(self, partition: bytes) -> dict[int, ProducerEntry]:
        """Every producer that the partition remembers, by producer id."""
        return {
            _PRODUCER_ID.unpack_from(key, len(partition))[0]: decode_entry(payload)
            for key, payload in self._items(partition, self._producers)
        }

    def used_producer_ids_end(self) -> int:
        """An id above every one that any partition remembers, but for absurd ones; 0 when none does."""
        end = 0
        with self.read() as transaction, transaction.cursor(db=self._producers) as cursor:
            for key in cursor.iternext(values=False):
                producer_id = _PRODUCER_ID.unpack_from(key, PARTITION_KEY_BYTES)[0]
                end = max(end, producer_id + 1 if producer_id < MAX_PRODUCER_ID else 0)
        return end

    def put_producer(
        self, transaction: Transaction, partition: bytes, producer_id: int, entry: ProducerEntry
    ) -> None:
        """Put a producer's entry, and keep the table of open transactions in line with it."""
        key = partition + _PRODUCER_ID.pack(producer_id)
        before = self._get(transaction, key, self._producers)
        if before is not None and (offset := decode_entry(before).txn_first_offset) >= 0:
            transaction.delete(partition + _OFFSET.pack(offset), db=self._transactions)
        transaction.put(key, seal(key, encode_entry(entry)), db=self._producers)
        if entry.txn_first_offset >= 0:
            self._put_transaction(transaction, partition, entry.txn_first_offset, producer_id)

    def replace_producers(
        self, transaction: Transaction, partition: bytes, entries: dict[int, ProducerEntry]
    ) -> None:
        """Put what recovery found in a log; its state is applied anew, as records of it may be gone."""
        self._drop_producers(transaction, partition)
        self._drop_state(transaction, partition)
        for producer_id, entry in entries.items():
            self.put_producer(transaction, partition, producer_id, entry)

    def drop_producer(self, transaction: Transaction, partition: bytes, producer_id: int) -> None:
        transaction.delete(partition + _PRODUCER_ID.pack(producer_id), db=self._producers)

    def _drop_producers(self, transaction: Transaction, partition: bytes) -> None:
        for table in (self._producers, self._transactions):
            _delete_prefix(transaction, table, partition)

    # Open transactions ----------------------------------------------------------------------------

    def open_transactions(self, partition: bytes = b"") -> list[OpenTransaction]:
        """The transactions without a marker, of one partition (by first offset) or of all."""
        return [
            OpenTransaction(
                key[:PARTITION_KEY_BYTES],
                _OFFSET.unpack_from(key, PARTITION_KEY_BYTES)[0],
                _PRODUCER_ID.unpack(payload)[0],
            )
            for key, payload in self._items(partition, self._transactions)
        ]

    def _put_transaction(
        self, transaction: Transaction, partition: bytes, first_offset: int, producer_id: int
    ) -> None:
        key = partition + _OFFSET.pack(first_offset)
        transaction.put(key, seal(key, _PRODUCER_ID.pack(producer_id)), db=self._transactions)

    # Journal and volatile tables ------------------------------------------------------------------

    def event(self, key: bytes) -> bytes | None:
        """The journal's latest value for *key*."""
        return self._read(key, self._journal)

    def event_of(self, kind: type[AnyKind], key: bytes) -> AnyKind | None:
        """The same, decoded; None when there is none of this kind."""
        value = self.event(key)
        event = None if value is None else decode_event(value)
        return event if isinstance(event, kind) else None

    def events(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return self._items(prefix, self._journal)

    def events_of(self, kind: type[AnyKind], prefix: bytes) -> list[AnyKind]:
        """The latest events whose keys begin with *prefix*, by key."""
        decoded = (decode_event(value) for _, value in self.events(prefix))
        return [event for event in decoded if isinstance(event, kind)]

    def has_events(self, prefix: bytes) -> bool:
        """Whether there is an event whose key begins with *prefix*."""
        return bool(self._items(prefix, self._journal, limit=1))

    def first_names(self, prefix: bytes) -> list[str]:
        """What stands behind *prefix* in the keys of events, up to the next NUL, ascending: each name once.

        One step of the table for each name, however many events it has.
        """
        names: list[str] = []
        with self.read() as transaction, transaction.cursor(db=self._journal) as cursor:
            found = cursor.set_range(prefix)
            while found and (key := cursor.key()).startswith(prefix):
                name = key[len(prefix) :].partition(b"\0")[0]
                names.append(name.decode())
                found = cursor.set_range(prefix + name + b"\1")  # behind every key of this name
        return names

    def apply_events(self, transaction: Transaction, items: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put each journal key's latest value; None deletes it."""
        for key, value in items:
            if value is None:
                transaction.delete(key, db=self._journal)
            else:
                transaction.put(key, seal(key, value), db=self._journal)

    def volatile(self, key: bytes) -> bytes | None:
        return self._read(key, self._volatile)

    def volatile_items(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return self._items(prefix, self._volatile)

    def update_volatile(self, key: bytes, change: Callable[[bytes | None], bytes | None]) -> bytes | None:
        """Replace a value by a function of it in one write transaction; None deletes it. Returns the new one."""
        with self.write() as transaction:
            before = self._get(transaction, key, self._volatile)
            after = change(before)
            if after is None:
                transaction.delete(key, db=self._volatile)
            elif after != before:
                transaction.put(key, seal(key, after), db=self._volatile)
        return after

    def forget_volatile(self, prefix: bytes) -> None:
        """Delete every volatile value whose key begins with *prefix*."""
        with self.write() as transaction:
            _delete_prefix(transaction, self._volatile, prefix)

    # Queues ---------------------------------------------------------------------------------------

    def queue_rows(self, transaction: Transaction, prefix: bytes) -> TableRows:
        """The rows of one queue, as *transaction* sees and changes them."""
        return TableRows(transaction, self._queues, prefix, self.unseal)

    # State of transforms --------------------------------------------------------------------------

    def state_offset(self, partition: bytes) -> int:
        """Up to where the partition's log was applied to the state table."""
        return self.meta_int(_state_meta(partition))

    def state_value(self, partition: bytes, key: bytes) -> bytes | None:
        return self._read(partition + key, self._state)

    def state_items(self, partition: bytes, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """The items from *start* to below *end* by key, read a slice at a time: each slice as of one moment."""
        size, begin = len(partition), partition + start
        while True:
            found = self._items(partition, self._state, begin=begin, limit=STATE_SLICE)
            for stored_key, value in found:
                key = stored_key[size:]
                if end is not None and key >= end:
                    return
                yield key, value
            if len(found) < STATE_SLICE:
                return
            begin = found[-1][0] + b"\0"

    def apply_state(
        self, partition: bytes, items: Iterable[tuple[bytes, bytes | None]], from_offset: int, to_offset: int
    ) -> None:
        """Put the items of offsets [from_offset, to_offset) of the log; nothing if somebody else was faster."""
        name = _state_meta(partition)
        with self.write() as transaction:
            if self.meta_int_in(transaction, name) != from_offset:
                return
            for key, value in items:
                stored_key = partition + key
                if value is None:
                    transaction.delete(stored_key, db=self._state)
                else:
                    transaction.put(stored_key, seal(stored_key, value), db=self._state)
            self.put_meta_int(transaction, name, to_offset)

    def _drop_state(self, transaction: Transaction, partition: bytes) -> None:
        """Forget the items together with the offset, which says that they are there."""
        _delete_prefix(transaction, self._state, partition)
        self.delete_meta(transaction, _state_meta(partition))

    def clear_volatile(self) -> None:
        """Forget members, heartbeats and leases: nobody has the directory open."""
        with self.write() as transaction:
            transaction.drop(self._volatile, delete=False)

    def check(self) -> None:
        """Read every value once.

        Raises:
            ViewError: one of them fails its checksum or is missing, or LMDB cannot walk its own tree.
        """
        found = sum(len(self._items(b"", table)) for table in self._tables)
        if found != self.entries():
            raise self._damaged(f"{found} values were found where {self.entries()} are counted")
