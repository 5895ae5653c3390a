"""Forgetting transactional ids that had no transaction for a week, as Kafka does (transactional.id.expiration.ms).

Some clients use an id once only, of a checkpoint or a process: the journal and the view would grow for ever.

    an id                                                          is
    whose transaction is open in a log                             kept: whoever looks around ends it first
    that was claimed, or its last transaction decided, this week   kept
    that is held by one who was seen this week (``Holding``)       kept
    else                                                           forgotten

    step                                          a process that dies before the next step leaves
    1 the markers of its last transaction are     nothing
      on the disk
    2 Holding goes: nothing more is added to a    an id that nobody holds, as when the machine was started again
      transaction of its last holder
    3 its event is deleted, durably               (done)

Without the event nobody could write a marker again that a power cut takes back. Its transaction would be a stranger's,
and aborted: hence step 1, for topics of any durability.

Who comes back is given a producer id that nobody had, so that nothing which an older holder may still send is taken
for its own. The library claims the id anew, unseen. A Kafka client is told INVALID_PRODUCER_ID_MAPPING, as by Kafka:
it aborts, and begins anew. The state of an id (``tx.state``) is a topic of its own, and stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError, TopicNotFoundError
from logbroker_storage.events import TransactionEvent

from .groups import TopicPartition
from .holdings import EXPIRATION_MS, Holding, Holdings

logger = logging.getLogger("logbroker.transactions")

INTERVAL_MS = 3_600_000  # as Kafka's: a pass over 20,000 ids takes 0.4 s
IDS_AT_ONCE = 200  # for which the journal's lock is held, some 30 ms


class TransactionalIdExpiry:
    """The passes of one process, for the cleaner to call as often as it likes."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._next_ms = directory.clock.monotonic_ms()  # guarded by the cleaner's lock

    def run(self) -> None:
        now_ms = self._directory.clock.monotonic_ms()
        if now_ms >= self._next_ms:
            self._next_ms = now_ms + INTERVAL_MS
            expire_transactional_ids(self._directory)


def expire_transactional_ids(directory: DataDirectory) -> int:
    """One pass over all ids; how many were forgotten."""
    events = directory.view.events.all(TransactionEvent, TransactionEvent.ALL)
    due = _expired(directory, events)
    forgotten = 0
    for first in range(0, len(due), IDS_AT_ONCE):
        forgotten += _forget(directory, _settled(directory, due[first : first + IDS_AT_ONCE]))
    if forgotten:
        with directory.journal.exclusive() as turn:
            turn.compact(deleted=forgotten)
        logger.info("forgot %d transactional ids that had no transaction for a week", forgotten)
    return forgotten


def expired(
    events: Sequence[TransactionEvent],
    holding_of: Callable[[str], Holding | None],
    *,
    opened: Collection[int],
    now_ms: int,
    monotonic_ms: int,
) -> list[TransactionEvent]:
    """Those of *events* whose ids are to be forgotten; *opened* are the producer ids that have a transaction open."""
    found = []
    for event in events:
        if now_ms - event.updated_ms < EXPIRATION_MS or event.producer_id in opened:
            continue
        holding = holding_of(event.transactional_id)
        if holding is None or holding.is_given_up(monotonic_ms):
            found.append(event)
    return found


def _expired(directory: DataDirectory, events: Sequence[TransactionEvent]) -> list[TransactionEvent]:
    """The same, with the facts of now."""
    return expired(
        events,
        Holdings(directory).of,
        opened={found.producer_id for found in directory.view.partitions.open_transactions()},
        now_ms=directory.clock.now_ms(),
        monotonic_ms=directory.clock.monotonic_ms(),
    )


def _settled(directory: DataDirectory, events: Sequence[TransactionEvent]) -> list[TransactionEvent]:
    """Those of *events* whose markers are on the disk. None of their transactions is open: the markers are written."""
    places = {place for event in events for place in event.partitions}
    unsynced = {place for place in places if not _synced(directory, place)}
    return [event for event in events if unsynced.isdisjoint(event.partitions)]


def _synced(directory: DataDirectory, place: TopicPartition) -> bool:
    try:
        directory.log(*place).sync()
    except TopicNotFoundError:
        pass  # deleted meanwhile, with the markers
    except (LogbrokerError, OSError) as error:
        logger.warning("transactional ids with a transaction in %s-%d are forgotten later: %s", *place, error)
        return False
    return True


def _forget(directory: DataDirectory, events: Sequence[TransactionEvent]) -> int:
    holdings = Holdings(directory)
    with directory.journal.exclusive() as turn:
        stored = directory.view.events
        unchanged = [event for event in events if stored.get(TransactionEvent, event.key()) == event]
        gone = [event for event in _expired(directory, unchanged) if holdings.give_up(event.transactional_id)]
        turn.write([(event.key(), None) for event in gone])
    return len(gone)
