"""The topics of a directory: a cache of the journal's topic events, and the changes to them.

Every process reads the cache; a version counter in the view says when it is stale. Changes are made
under ``Journal.exclusive``, so two processes cannot create one topic twice.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping

import msgspec

from .clock import Clock
from .errors import (
    InvalidPartitionCountError,
    InvalidTopicError,
    LogbrokerError,
    TopicExistsError,
    TopicNotFoundError,
    WriteFailedError,
    reason_of,
)
from .events import (
    LogStartEvent,
    MessageIdEvent,
    OffsetEvent,
    QueueBlockEvent,
    QueueEvent,
    TopicEvent,
    TtlEvent,
    encode_event,
)
from .files import Files
from .journal import JOURNAL_TOPIC, JOURNAL_TOPIC_ID, TOPICS_VERSION, Item, Journal
from .known_events import KnownEvents
from .layout import MAX_PARTITIONS, DataLayout, parse_partition_folder
from .log_config import ConfigValue, LogConfig
from .topic_folders import (
    check_free,
    create_partition_folder,
    has_records,
    move_aside,
    remove_folder,
    remove_partition_folder,
    topic_id_of,
)
from .view import SyncPoint, View, partition_key
from .view.partitions import empty_log_end

logger = logging.getLogger("logbroker.storage")

SIGNAL = "topics"


class Catalog:
    """Topics by name. Safe across threads and processes."""

    def __init__(
        self,
        *,
        layout: DataLayout,
        view: View,
        journal: Journal,
        files: Files,
        clock: Clock,
        signal: Callable[[str], None],
        checkpoint: Callable[[], None],
    ) -> None:
        """*signal* wakes who waits for changed topics; *checkpoint* writes the live partitions' recovery points."""
        self._layout = layout
        self._view = view
        self._journal = journal
        self._files = files
        self._clock = clock
        self._signal = signal
        self._checkpoint = checkpoint
        self._known = KnownEvents(view, TopicEvent, TopicEvent.ALL, TOPICS_VERSION)

    def version(self) -> int:
        """Grows with every change to any topic."""
        return self._known.version()

    def all(self) -> Mapping[str, TopicEvent]:
        """Every topic by name, also those being deleted."""
        return self._known.all()

    def get(self, name: str) -> TopicEvent:
        """The live topic of this name.

        Raises:
            TopicNotFoundError: there is none.
            InvalidTopicError: *name* is no text.
        """
        if not isinstance(name, str):
            raise InvalidTopicError.no_text(name)
        event = self.all().get(name)
        if event is None or event.state != "live":
            raise TopicNotFoundError(name)
        return event

    def live(self) -> list[TopicEvent]:
        """The live topics as of one moment, in the order of their names."""
        return sorted(
            (event for event in self.all().values() if event.state == "live"), key=lambda event: event.name
        )

    # Changes --------------------------------------------------------------------------------------

    def create(self, name: str, partitions: int, config: LogConfig) -> TopicEvent:
        """Create a topic, durably.

        Raises:
            TopicExistsError: it is there already.
            InvalidPartitionCountError: the number of partitions is impossible.
            WriteFailedError: the file system refused.
        """
        check_partitions(partitions)
        self.finish_deletions()
        with self._journal.exclusive() as turn:
            if name in self.all():
                raise TopicExistsError(name)
            event = TopicEvent(
                name=name,
                topic_id=secrets.token_bytes(16),
                partitions=partitions,
                config=config.overrides,
                created_ms=self._clock.now_ms(),
            )
            self._make_partitions(event, range(partitions))
            turn.record([event])
        self._signal(SIGNAL)
        return event

    def _make_partitions(self, event: TopicEvent, numbers: range) -> None:
        made: list[str] = []
        try:
            for number in numbers:
                folder = self._layout.partition(event.name, number)
                check_free(self._files, folder)
                made.append(folder)
                create_partition_folder(self._files, folder, event.topic_id)
            self._files.fsync_directory(self._layout.logs)
        except OSError as error:
            for folder in made:
                remove_partition_folder(self._files, folder, event.topic_id)
            raise WriteFailedError(
                f"the folders of topic {event.name!r} cannot be made: {reason_of(error)}"
            ) from error
        with self._view.write() as transaction:
            for number in numbers:
                key = partition_key(event.topic_id, number)
                self._view.partitions.put_log_end(transaction, key, empty_log_end())
                self._view.partitions.put_sync_point(transaction, key, SyncPoint(0, 0, 0))

    def remove_unfinished(self) -> None:
        """Remove what creations that were cut short have left: folders without records that are no topic's.

        One with records was put there by somebody: it stays, and becomes a topic when the view is next rebuilt.
        """
        if not self._strangers():
            return
        # Whoever makes folders holds this from the first of them until the topic is journaled.
        with self._journal.exclusive():
            for name, number in self._strangers():
                folder = self._layout.partition(name, number)
                if has_records(self._files, folder):
                    continue
                topic_id = topic_id_of(self._files, folder)
                if topic_id is not None and number >= self._partitions_of(topic_id):
                    with self._view.write() as transaction:
                        self._view.drop_partition(transaction, partition_key(topic_id, number))
                remove_folder(self._files, folder)

    def _partitions_of(self, topic_id: bytes) -> int:
        """How many partitions the topic of this id has, the journal too; 0 where there is none."""
        if topic_id == JOURNAL_TOPIC_ID:
            return 1
        return max(
            (event.partitions for event in self.all().values() if event.topic_id == topic_id), default=0
        )

    def _strangers(self) -> list[tuple[str, int]]:
        """The folders of partitions, as topic and number, that no topic has."""
        topics = self.all()
        found = map(parse_partition_folder, self._files.listdir(self._layout.logs))
        return [
            (name, number)
            for name, number in filter(None, found)
            if name != JOURNAL_TOPIC and (name not in topics or number >= topics[name].partitions)
        ]

    def alter(self, name: str, changes: Mapping[str, ConfigValue | None]) -> TopicEvent:
        """Change configuration keys of a topic, durably; None takes a key back to its default.

        Raises:
            TopicNotFoundError, InvalidConfigError: nothing was changed.
        """
        with self._journal.exclusive() as turn:
            event = self.get(name)
            config = LogConfig.parse(event.config).with_changes(changes)
            changed = msgspec.structs.replace(event, config=config.overrides)
            turn.record([changed])
        self._signal(SIGNAL)
        return changed

    def add_partitions(self, name: str, total: int) -> TopicEvent:
        """Give a topic *total* partitions; there is no way back.

        Raises:
            InvalidPartitionCountError: it has as many or more already.
        """
        check_partitions(total)
        with self._journal.exclusive() as turn:
            event = self.get(name)
            check_growth(event, total)
            changed = msgspec.structs.replace(event, partitions=total)
            self._make_partitions(changed, range(event.partitions, total))
            turn.record([changed])
        self._signal(SIGNAL)
        return changed

    def delete(self, name: str) -> None:
        """Delete a topic with its records and the offsets that groups committed in it.

        Raises:
            TopicNotFoundError: there is none.
        """
        with self._journal.exclusive() as turn:
            event = msgspec.structs.replace(self.get(name), state="deleting")
            items: list[Item] = [(event.key(), encode_event(event))]
            items += [(key, None) for key in self._keys_about(name)]
            turn.write(items)
        self._finish_deletions_in_passing(name)
        self._signal(SIGNAL)

    def _finish_deletions_in_passing(self, name: str) -> None:
        """It is gone for everybody; what goes wrong from here on is no failure of that."""
        try:
            self.finish_deletions()
        except (LogbrokerError, OSError) as error:
            logger.warning("the files of %r are removed later: %s", name, error)

    def _keys_about(self, topic: str) -> list[bytes]:
        """The keys of the topic's events but its own. One step for each group and queue, however much they read."""
        events = self._view.events
        prefixes = [LogStartEvent.prefix_of(topic)]
        for kind in (OffsetEvent, QueueEvent, QueueBlockEvent):
            prefixes += [kind.prefix_of(reader, topic) for reader in events.first_names(kind.ALL)]
        keys = [key for prefix in prefixes for key, _ in events.items(prefix)]
        return [*keys, TtlEvent.key_of(topic), MessageIdEvent.key_of(topic)]

    def finish_deletions(self) -> None:
        """Remove what is left of topics in state "deleting": ours, or a dead process's."""
        if not self._deleting():
            return
        # A topic of the same name must not begin with the recovery points of this one. The name is
        # not free before the event is gone.
        self._checkpoint()
        doomed: list[str] = []
        with self._journal.exclusive() as turn:
            for event in self._deleting():
                doomed += self._move_partitions_aside(event)
                turn.write([(event.key(), None)])
        for folder in doomed:
            remove_folder(self._files, folder)

    def _deleting(self) -> list[TopicEvent]:
        return [event for event in self.all().values() if event.state == "deleting"]

    def _move_partitions_aside(self, event: TopicEvent) -> list[str]:
        """Under the journal lock, because as soon as the event is gone the folders' names may be taken anew."""
        with self._view.write() as transaction:
            for number in range(event.partitions):
                self._view.drop_partition(transaction, partition_key(event.topic_id, number))
        self._view.message_ids.drop_topic(event.topic_id)
        doomed = [
            move_aside(self._files, self._layout.partition(event.name, number), event.topic_id)
            for number in range(event.partitions)
        ]
        self._files.fsync_directory(self._layout.logs)
        return doomed


def check_growth(event: TopicEvent, total: int) -> None:
    """That a topic can have *total* partitions from now on.

    Raises:
        InvalidPartitionCountError: it has as many or more already, or cannot have so many.
    """
    check_partitions(total)
    if total <= event.partitions:
        raise InvalidPartitionCountError(
            f"topic {event.name!r} has {event.partitions} partitions; their number can only grow, not become {total}"
        )


def check_partitions(partitions: int) -> None:
    """That a topic can have so many.

    Raises:
        InvalidPartitionCountError: it cannot.
    """
    if type(partitions) is not int or not 1 <= partitions <= MAX_PARTITIONS:  # nor a bool: it is stored
        raise InvalidPartitionCountError(f"a topic has 1 to {MAX_PARTITIONS} partitions, not {partitions!r}")
