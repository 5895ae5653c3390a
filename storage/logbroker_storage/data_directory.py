"""A data directory as one process sees it: its topics' logs, the journal, the view, and who else is there.

    room                  idea
    ``open_directories``  one object a directory and process; what a fork does to it
    ``presence``          the process's place among those that have the directory open
    ``startup``           the view, made from the logs where it cannot be believed
    ``catalog``           the topics
    ``groups``            what consumer groups have subscribed to and committed
    ``producer_ids``      who may write as which producer
    ``maintenance``       the background work

Any number of processes may have the same directory open; what they share is on the disk and in the view. After
``fork`` the object is the parent's: in the child every use of it raises ``ForkedError``, and opening the directory
again gives the child an object of its own.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from . import open_directories
from .catalog import Catalog
from .checkpoints import PartitionOffset, encode_partition_offsets
from .clock import SYSTEM_CLOCK, Clock
from .deduplication import DeduplicationWindow
from .descriptors import Descriptors
from .errors import (
    ClosedError,
    DirectoryInUseError,
    FileSystemError,
    ForkedError,
    InvalidRequestError,
    LogbrokerError,
    TopicNotFoundError,
    WriteFailedError,
    advice_on,
    reason_of,
)
from .events import LogStartEvent, MessageIdEvent, OffsetEvent, TopicEvent, TtlEvent
from .files import Files, OsFiles, PlacedFiles, absolute_path
from .groups import Groups
from .heap import keep_freed_blocks
from .journal import JOURNAL_CONFIG, JOURNAL_TOPIC, JOURNAL_TOPIC_ID, Journal
from .layout import DataLayout
from .local_log import LogPlace, Shared
from .locks import ProcessLock
from .log_config import ConfigValue, Durability, LogConfig
from .maintenance import Maintenance
from .partition_log import PartitionLog
from .presence import Presence
from .producer_ids import ProducerIds
from .recovery import reopen_failed
from .startup import (
    closed_on_failure,
    known_ends,
    make_folders,
    make_journal_folder,
    make_view_folders,
    missing_folder,
    open_view,
    rebuild_view,
    remove_leftovers,
    sound_view,
    unknown_segment,
)
from .touching import make_touchable, touch
from .view import View, partition_key

logger = logging.getLogger("logbroker.storage")

WINDOWS_OPEN = 64  # topics with message ids; with more of them, those opened first are closed when not in use


class DataDirectory:
    """Use ``DataDirectory.open``. Safe across threads and processes."""

    def __init__(self, path: str, files: Files, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self.files = files
        self.layout = layout = DataLayout(path)
        self.users = 0  # of this object, in the process; kept by ``open_directories``
        self._descriptors = Descriptors()
        self._logs: dict[tuple[str, int], PartitionLog] = {}  # guarded by _logs_lock
        self._logs_version = -1  # catalog version that _logs was checked against; guarded by _logs_lock
        self._logs_topic_ids: set[bytes] = set()  # of the topics of that version; guarded by _logs_lock
        self._logs_lock = threading.Lock()
        self._windows: dict[bytes, DeduplicationWindow] = {}  # by topic id; guarded by _logs_lock
        # Topic ids of windows with an open descriptor, in the order of opening; guarded by _logs_lock.
        self._windows_open: dict[bytes, None] = {}
        # Kinds of events with topic ids. An entry too few costs a look, so it needs no lock.
        self._noted: set[tuple[type, bytes]] = set()
        self.was_left = False  # by its last user; or it is a forked child's copy
        self._presence = Presence(files, layout)
        self.view = self._presence.enter(self._first_view, self._shared_view)
        self.process_id = self._presence.process_id
        self.journal = self._make_journal(self.view)
        self.groups = Groups(self.view)
        self.producer_ids = ProducerIds(self.journal, self.view)
        try:
            self._presence.sweep()
            self._begin()
        except BaseException:
            self._leave()
            raise

    def _begin(self) -> None:
        """Finish what dead processes left, and start the background work."""
        self.catalog = Catalog(
            layout=self.layout,
            view=self.view,
            journal=self.journal,
            files=self.files,
            clock=self.clock,
            signal=self.signal,
            checkpoint=self.checkpoint,
        )
        self._verify_failed()
        if self._presence.came_first:
            self.journal.restore()
        self.journal.finish()
        self.catalog.finish_deletions()
        if self._presence.came_first:
            self.catalog.remove_unfinished()
        self.maintenance = Maintenance(self)

    # Opening and closing --------------------------------------------------------------------------

    @staticmethod
    def open(path: str, *, files: Files | None = None, clock: Clock = SYSTEM_CLOCK) -> DataDirectory:
        """The directory at *path*, which is created when it is not there.

        Raises:
            LogbrokerError: it cannot be created or opened; the message says why.
        """
        keep_freed_blocks()
        path = absolute_path(path)
        layout = DataLayout(path)
        try:
            make_folders(files or OsFiles(), layout)
        except OSError as error:
            reason = f"the data directory cannot be made: {error.strerror}"
            raise FileSystemError(error.errno, reason, error.filename or path) from error

        def make() -> DataDirectory:
            marks = (layout.presence_lock, layout.opening_lock)
            return DataDirectory(path, files or PlacedFiles(path, marks), clock)

        return open_directories.use(path, make)

    def one_more_use(self) -> DataDirectory:
        """This object, whatever is at its path by now, for one more user, who closes it, too.

        Raises:
            ClosedError: its last user has just closed it.
        """
        open_directories.use_again(self)
        return self

    def close(self) -> None:
        """Leave the directory; with the last user of this process: sync, checkpoint and close everything."""
        open_directories.leave(self)

    @property
    def closed(self) -> bool:
        """Whether nothing here is to be used, nor given back: it was left, or is a parent's, or the interpreter ends.

        At the interpreter's end a handle may still be closed (that of a generator that was left in the middle, say).
        Daemon threads are stopped by then, wherever they were, with our locks in their hands; whoever waits for
        one waits for ever. What is left open there is set right like what a killed process leaves.
        """
        return self.was_left or sys.is_finalizing()

    def check_usable(self, user: str) -> None:
        """For *user*, "this consumer" say, who has not left it.

        Raises:
            ForkedError, or ClosedError at the interpreter's end.
        """
        if self.was_left:
            raise ForkedError(user)
        if sys.is_finalizing():
            raise ClosedError(f"the interpreter is at its end, and {user} with it; use and close it before")

    @property
    def is_shared_in_process(self) -> bool:
        """Whether there is more than one user of this object."""
        return self.users > 1

    def _first_view(self) -> View:
        view = sound_view(self.files, self.layout)
        if view is None:
            return self._rebuilt_view()
        with closed_on_failure(view):
            missing = missing_folder(self.files, self.layout, view)
            ends = known_ends(self.layout, view)
            unknown = unknown_segment(self.files, ends)
            if missing is None and unknown is None:
                make_view_folders(self.files, self.layout)
                view.volatile.clear()
                remove_leftovers(self.files, self.layout, view, ends)
                return view
            if unknown is None:
                self._restore_journal(view)
        reason = f"{missing} is missing" if unknown is None else f"it is older than {unknown}"
        logger.info("%s is rebuilt from the logs: %s", self.layout.view, reason)
        view.close()
        return self._rebuilt_view()

    def _rebuilt_view(self) -> View:
        return rebuild_view(self.files, self.layout, self._make_log, self._make_journal)

    def _restore_journal(self, view: View) -> None:
        """Have the journal whole before *view* goes, which may be the last to know its events."""
        make_view_folders(self.files, self.layout)
        make_journal_folder(self.files, self.layout)
        journal = self._make_journal(view)
        try:
            journal.restore()
        finally:
            journal.log.release_files()
            journal.close()

    def _shared_view(self) -> View:
        if not self.files.exists(self.layout.view_data):
            raise DirectoryInUseError(
                f"{self.layout.view} was deleted while other processes use {self.path}; "
                "close them, then open the directory again: the view is rebuilt from the logs"
            )
        return open_view(self.files, self.layout)

    def _verify_failed(self) -> None:
        failed = set(self.view.partitions.failed())
        if not failed:
            return
        logs = [self.journal.log]
        for topic in self.catalog.live():
            logs += [self.log(topic.name, number) for number in range(topic.partitions)]
        for log in logs:
            if log.key in failed:
                reopen_failed(log)

    def shut_down(self) -> None:
        """What ``close`` does with the last user.

        Whatever happens (a Ctrl-C that comes in between), the view is closed, which could not be opened again else,
        and no lock stays taken: nobody would look for those that were left.
        """
        try:
            self.maintenance.close()
            failures = self._close_logs()
        finally:
            self._leave()
        if failures:
            raise failures[0]

    def _close_logs(self) -> list[LogbrokerError | OSError]:
        """Close them cleanly, with their recovery points; those errors that leave a log as a kill would."""
        logs = [self.journal.log, *self._logs.values()]
        failures: list[LogbrokerError | OSError] = []
        for log in logs:
            try:
                log.close_cleanly()
            except TopicNotFoundError:
                pass  # deleted meanwhile
            except (LogbrokerError, OSError) as error:
                failures.append(error)
        try:
            if any(log.appends for log in logs):
                self.checkpoint()
        except (LogbrokerError, OSError) as error:
            # Nothing is lost: after a restart of the machine more of the logs is scanned.
            logger.warning("the recovery points could not be written: %s", error)
        return failures

    def _leave(self) -> None:
        """Give back locks and descriptors, and go."""
        try:
            self.free_left_locks()
            for log in [self.journal.log, *self._logs.values()]:
                log.release_files()
            for window in self._windows.values():
                window.release()
            self.journal.close()
        finally:
            self._presence.leave(self.view)

    def checkpoint(self) -> None:
        """Write the recovery points: how much of each partition is known to be on the disk."""
        with self._presence.opening_lock:
            points = [PartitionOffset(JOURNAL_TOPIC, 0, self.journal.log.state().sync.synced_offset)]
            synced = self.view.partitions.synced_offsets()
            for topic in self.catalog.live():
                for number in range(topic.partitions):
                    synced_offset = synced.get(partition_key(topic.topic_id, number))
                    if synced_offset is not None:
                        points.append(PartitionOffset(topic.name, number, synced_offset))
            self.files.replace_file(self.layout.recovery_points, encode_partition_offsets(points))

    # Logs -----------------------------------------------------------------------------------------

    def _make_log(self, view: View, topic: str, partition: int, event: TopicEvent | None) -> PartitionLog:
        place = LogPlace(
            topic,
            partition,
            topic_id=event.topic_id if event is not None else JOURNAL_TOPIC_ID,
            directory=self.layout.partition(topic, partition),
            lock_path=self.layout.partition_lock(topic, partition),
        )
        config = _config_of(event) if event is not None else JOURNAL_CONFIG
        return PartitionLog(place, config, Shared(view, self.files, self.clock, self._descriptors))

    def _make_journal(self, view: View) -> Journal:
        log = self._make_log(view, JOURNAL_TOPIC, 0, None)
        return Journal(log, view, self.clock, self.layout.lock("journal"))

    def log(self, topic: str, partition: int) -> PartitionLog:
        """The log of a partition; the same object each time, with the topic's current configuration.

        Raises:
            TopicNotFoundError: no such topic, or no such partition.
            InvalidTopicError, InvalidRequestError: *topic* is no text, *partition* no integer.
        """
        event = self.topic(topic)
        if type(partition) is not int:
            raise InvalidRequestError(f"a partition is an integer, not {partition!r}")
        if not 0 <= partition < event.partitions:
            raise TopicNotFoundError(topic, partition=partition, partitions=event.partitions)
        with self._logs_lock:
            self._refresh_logs()
            log = self._logs.get((topic, partition))
            if log is None:
                log = self._logs[topic, partition] = self._make_log(self.view, topic, partition, event)
                if log.config.durability is Durability.INTERVAL:
                    self.maintenance.look_again()
        return log

    def _refresh_logs(self) -> None:
        """Bring open logs in line with changed topics. Under _logs_lock."""
        version = self.catalog.version()
        if version == self._logs_version:
            return
        topics = self.catalog.all()
        for (topic, partition), log in list(self._logs.items()):
            event = topics.get(topic)
            if event is None or event.topic_id != log.topic_id:
                del self._logs[topic, partition]
                self._descriptors.log_deleted(log)
            else:
                log.config = _config_of(event)
        live = {event.topic_id for event in topics.values()}
        if self._logs_version < 0 or not self._logs_topic_ids <= live:
            self._forget_all_but(live)
        self._logs_topic_ids = live
        self._logs_version = version

    def _forget_all_but(self, live: set[bytes]) -> None:
        """Keep nothing of topics but those of these ids. Under _logs_lock."""
        for topic_id in [known for known in self._windows if known not in live]:
            self._windows.pop(topic_id).release()
        self._noted = {(kind, topic_id) for kind, topic_id in self._noted if topic_id in live}
        self.view.partitions.keep_known(live | {JOURNAL_TOPIC_ID})

    def open_logs(self) -> list[PartitionLog]:
        """The logs that this process has used, with their current configuration."""
        with self._logs_lock:
            self._refresh_logs()
            return list(self._logs.values())

    def look_at_place(self) -> None:
        """Have those told who append, where the directory is not at its path any more: they open their files anew."""
        if isinstance(self.files, PlacedFiles) and not self.files.is_in_place():
            for log in [self.journal.log, *self.open_logs()]:
                log.close_files()

    def free_left_locks(self) -> None:
        """Have those go on who wait for a lock that an interrupted thread of this process has left (see ``locks``)."""
        with self._logs_lock:
            logs = [self.journal.log, *self._logs.values()]
            windows = list(self._windows.values())
        for lock in (
            self._presence.opening_lock,
            self.journal.lock,
            self.view.writing,
            *(log.append_lock for log in logs),
            *(log.sync_lock for log in logs),
            *(window.lock for window in windows),
        ):
            lock.free_if_left()

    def sync_below(self, offsets: Iterable[OffsetEvent]) -> None:
        """``PartitionLog.sync_below`` for each of *offsets*.

        Raises:
            StorageFailedError: a log cannot be synced.
        """
        for event in offsets:
            try:
                log = self.log(event.topic, event.partition)
            except TopicNotFoundError:
                continue  # deleted meanwhile
            log.sync_below(event.offset)

    # Topics ---------------------------------------------------------------------------------------

    def topic(self, name: str) -> TopicEvent:
        """The live topic of this name; raises TopicNotFoundError."""
        return self.catalog.get(name)

    def topics(self) -> list[str]:
        return [topic.name for topic in self.catalog.live()]

    def topics_version(self) -> int:
        return self.catalog.version()

    def create_topic(self, name: str, partitions: int, config: LogConfig) -> TopicEvent:
        return self.catalog.create(name, partitions, config)

    def alter_topic(self, name: str, changes: Mapping[str, ConfigValue | None]) -> TopicEvent:
        changed = self.catalog.alter(name, changes)
        if _config_of(changed).durability is Durability.FSYNC:
            for number in range(changed.partitions):
                self.log(name, number).sync()
        return changed

    def add_partitions(self, name: str, total: int) -> TopicEvent:
        return self.catalog.add_partitions(name, total)

    def delete_topic(self, name: str) -> None:
        self.catalog.delete(name)

    def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        """Delete a partition's records below *before_offset*, durably; the new log start offset."""
        log = self.log(topic, partition)
        with self.journal.exclusive() as turn:
            offsets = log.offsets()
            start = min(before_offset, offsets.high_watermark)
            if start <= offsets.log_start_offset:
                return offsets.log_start_offset
            turn.record([LogStartEvent(topic, partition, start)])
            return log.delete_before(start)

    def note_ttl(self, topic: str) -> None:
        """Have it last that records of *topic* may have a time to live of their own; before the first of them.

        Raises:
            TopicNotFoundError, StorageFailedError, WriteFailedError: nothing may be written yet.
        """
        self._note(TtlEvent(topic), topic)

    def note_message_ids(self, topic: str) -> None:
        """The same for records with a message id."""
        self._note(MessageIdEvent(topic), topic)

    def _note(self, event: TtlEvent | MessageIdEvent, topic: str) -> None:
        noted = (type(event), self.topic(topic).topic_id)
        if noted not in self._noted:
            if self.view.events.value(event.key()) is None:
                self.journal.record([event])
            self._noted.add(noted)

    def may_hold_ttl(self, topic: str) -> bool:
        """Whether records of *topic* may have a time to live of their own."""
        return self.view.events.value(TtlEvent.key_of(topic)) is not None

    def deduplication(self, topic: str) -> DeduplicationWindow:
        """The deduplication window of a topic; the same object each time.

        Raises:
            TopicNotFoundError: no such topic.
        """
        topic_id = self.topic(topic).topic_id
        with self._logs_lock:
            window = self._windows.get(topic_id)
            if window is None:
                window = self._windows[topic_id] = DeduplicationWindow(
                    topic_id=topic_id,
                    lock=ProcessLock(
                        self.files,
                        self.layout.topic_lock(topic),
                        opened=partial(self._window_opened, topic_id),
                    ),
                    view=self.view,
                    clock=self.clock,
                    log_of=partial(self.log, topic),
                )
        return window

    def _window_opened(self, topic_id: bytes) -> None:
        """The window of this topic has opened its descriptor: another one may have to close its own."""
        with self._logs_lock:
            self._windows_open[topic_id] = None
            for other in list(self._windows_open)[:-WINDOWS_OPEN]:
                window = self._windows.get(other)
                if window is None or window.release():
                    del self._windows_open[other]

    # Other processes ------------------------------------------------------------------------------

    def process_alive(self, process_id: str) -> bool:
        return self._presence.alive(process_id)

    def signal(self, name: str) -> None:
        """Wake every waiter, in any process, that watches ``signal_path(name)``.

        What is to be told is done, and stays done if it cannot be told: others notice later.
        """
        try:
            fd = self.files.open(self.layout.signal(name))
            try:
                touch(self.files, fd)
            finally:
                self.files.close(fd)
        except FileNotFoundError:
            return  # nobody has ever watched it
        except OSError as error:
            logger.warning("those who wait for %r are not woken: %s", name, error)

    def signal_path(self, name: str) -> str:
        """The file that ``signal(name)`` touches; it exists when this returns.

        Raises:
            WriteFailedError: it cannot be made.
        """
        path = self.layout.signal(name)
        try:
            fd = self.files.open(path, create=True)
            try:
                make_touchable(self.files, fd)
            finally:
                self.files.close(fd)
        except OSError as error:
            raise WriteFailedError(
                f"{path} cannot be made: {reason_of(error)}; {advice_on(error)}"
            ) from error
        return path

    # Fork -----------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """In a forked child: give back what was inherited, and refuse every further use.

        No lock is taken: a thread that did not come along may have it.
        """
        forked: Any = open_directories.Forked()
        for log in [self.journal.log, *self._logs.values()]:
            log.abandon(forked)
        for window in self._windows.values():
            window.abandon(forked)
        self.journal.abandon()
        self.view.writing.abandon()
        self._presence.abandon()
        self.maintenance.abandon()
        self.view = self.journal = self.catalog = self.groups = self.producer_ids = self.maintenance = forked
        self.files = self._presence = self._logs_lock = forked
        self.was_left = True


def _config_of(topic: TopicEvent) -> LogConfig:
    return _parsed(tuple(topic.config.items()))


@functools.lru_cache(maxsize=256)
def _parsed(settings: tuple[tuple[str, str], ...]) -> LogConfig:
    """A topic's configuration; thousands of topics have the same few."""
    return LogConfig.parse(dict(settings))
