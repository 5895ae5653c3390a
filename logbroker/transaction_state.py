"""``tx.state``: a small durable key-value store whose writes are part of the transaction.

    truth      a compacted internal topic, one a transactional id: a record a key, a tombstone for a deletion,
               written with the transaction's own producer
    answers    the view's table ``state``, which has applied that log up to an offset kept beside it
    writes     wait in the transaction; they go to the log with the commit, and to the table behind it

The table follows the log: whoever uses a state first brings it up to the last stable offset, so a process that
died between its commit and the table leaves nothing to mend, and a deleted view is filled anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import overload

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import InvalidRequestError, TopicExistsError
from logbroker_storage.log_config import LogConfig
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import decode_records

TOPIC_PREFIX = "__state-"
# Compaction leaves the active segment alone: so much is kept, and read again for a deleted view, beside the state.
CONFIG = LogConfig.parse({"cleanup.policy": "compact", "segment.bytes": 8 << 20})
MAX_KEY_BYTES = 480  # what is left of LMDB's 511 beside the partition's key

Item = tuple[bytes, bytes | None]


def state_topic(transactional_id: str) -> str:
    """The internal topic that holds the state of an id; ids have characters that topics cannot have."""
    return TOPIC_PREFIX + hashlib.blake2b(transactional_id.encode(), digest_size=16).hexdigest()


class StateTable:
    """What is committed of one id's state, as the view has it."""

    def __init__(self, directory: DataDirectory, transactional_id: str) -> None:
        self.topic = state_topic(transactional_id)
        try:
            directory.create_topic(self.topic, 1, CONFIG)
        except TopicExistsError:
            pass  # from an earlier transaction
        self._log: PartitionLog = directory.log(self.topic, 0)
        self._view = directory.view

    def catch_up(self) -> None:
        """Apply what the log has committed and the table does not know yet."""
        applied = self._view.state.offset(self._log.key)
        offsets = self._log.offsets()
        if applied >= offsets.last_stable_offset:
            return
        reader = self._log.reader(max(applied, offsets.log_start_offset), Isolation.READ_COMMITTED)
        try:
            while batches := reader.read():
                items: list[Item] = [
                    (record.key, record.value)
                    for batch in batches
                    if not batch.header.is_control
                    for record in decode_records(batch)
                    if record.key is not None and record.offset >= applied
                ]
                self._view.state.apply(self._log.key, items, applied, reader.position)
                applied = self._view.state.offset(self._log.key)
                reader.seek(applied)  # elsewhere, when another process has been at it
        finally:
            reader.close()

    def get(self, key: bytes) -> bytes | None:
        return self._view.state.value(self._log.key, key)

    def items(self, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return self._view.state.items(self._log.key, start, end)


class TransactionState:
    """The state as one transaction sees it: what is committed, under its own writes.

    Keys are bytes of 1 to 480; values bytes. Used as a mapping, and by ranges of keys.
    """

    def __init__(self, table: StateTable) -> None:
        """Use ``tx.state``."""
        self._table = table
        self.topic = table.topic
        self.writes: dict[bytes, bytes | None] = {}  # not in the log yet; None: deleted
        self.is_open = True  # until the transaction has ended

    @overload
    def get(self, key: bytes, default: None = None) -> bytes | None: ...

    @overload
    def get(self, key: bytes, default: bytes) -> bytes: ...

    def get(self, key: bytes, default: bytes | None = None) -> bytes | None:
        """The value of *key*, else *default*."""
        self._check(key)
        value = self.writes[key] if key in self.writes else self._table.get(key)
        return default if value is None else value

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of *key*."""
        self._check(key)
        if type(value) is not bytes:
            raise InvalidRequestError(f"a value of the state is bytes, not {type(value).__name__}")
        self.writes[key] = value

    def delete(self, key: bytes) -> None:
        """Remove *key*; nothing happens when it is not there."""
        self._check(key)
        self.writes[key] = None

    def range(self, start: bytes = b"", end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """The items whose keys are not below *start* and below *end*, by ascending key.

        Writes of this transaction made while iterating may be seen or not.
        """
        self._check_open()
        for bound in (start, end):
            if type(bound) is not bytes and bound is not None:
                raise InvalidRequestError(
                    f"a range of the state begins and ends at bytes, not {bound!r:.100}"
                )
        own = sorted(
            (key, 0, value)
            for key, value in self.writes.items()
            if key >= start and (end is None or key < end)
        )
        committed = ((key, 1, value) for key, value in self._table.items(start, end))
        for key, found in groupby(merge(own, committed, key=itemgetter(0, 1)), key=itemgetter(0)):
            _, _, value = next(found)
            if value is not None:
                yield key, value

    def prefix(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The items whose keys begin with *prefix*, by ascending key."""
        for key, value in self.range(prefix):
            if not key.startswith(prefix):
                return
            yield key, value

    def __getitem__(self, key: bytes) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.put(key, value)

    def __delitem__(self, key: bytes) -> None:
        if key not in self:
            raise KeyError(key)
        self.delete(key)

    def __contains__(self, key: bytes) -> bool:
        return self.get(key) is not None

    def __iter__(self) -> Iterator[bytes]:
        return (key for key, _ in self.range())

    def _check(self, key: bytes) -> None:
        self._check_open()
        if type(key) is not bytes or not 1 <= len(key) <= MAX_KEY_BYTES:
            raise InvalidRequestError(f"a key of the state is 1 to {MAX_KEY_BYTES} bytes, not {key!r:.100}")

    def _check_open(self) -> None:
        if not self.is_open:
            raise InvalidRequestError("this state belongs to a transaction that has ended; begin another")
