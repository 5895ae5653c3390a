"""Opening a data directory: is the view still true, and if not, build it from the logs.

Under the opening lock, the first process to come (it can take the presence lock exclusively) decides:

    the view                                       then
    is missing, unreadable, or marked damaged      rebuild
    has pages that do not hold together            rebuild
    was the end of the last one who looked at it   rebuild: LMDB dies of damaged pages
    is of another boot or another format           rebuild: it was never synced
    fails its checksums                            rebuild
    is sound                                       use it; forget volatile facts; verify failed partitions; cut
                                                     off the room that killed processes left

A later process finds the presence lock shared: the view is in use, so it is true.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .checkpoints import PartitionOffset, encode_meta_properties, parse_partition_offsets
from .deduplication import restore
from .errors import ViewError
from .events import LogStartEvent, MessageIdEvent, TopicEvent, encode_event
from .files import Files
from .journal import JOURNAL_TOPIC, JOURNAL_TOPIC_ID, Journal
from .layout import DataLayout, parse_partition_folder
from .partition_log import PartitionLog
from .recovery import publish, recover_log
from .segment_files import SegmentFiles
from .side_files import cut_room
from .topic_folders import (
    create_partition_folder,
    has_records,
    remove_deleted_folders,
    remove_folder,
    topic_id_of,
)
from .view import View, partition_key
from .view.environment import DAMAGED_MARK, LOCK_BYTES, LOCK_FILE, VIEW_FORMAT
from .view.pages import find_damage

logger = logging.getLogger("logbroker.recovery")

BOOT_ID = b"boot_id"
FORMAT = b"format"
COMPLETE = b"complete"  # 1 when the rebuild that made the view came to its end
WALKED_BYTES = 32 << 20  # a larger view takes too long to walk: 10 ms a MiB
CHECKED_ENTRIES = 100_000  # a larger view is checked value by value as it is read

META_PROPERTIES = {"version": "1", "logbroker.format": "1"}

MakeLog = Callable[[View, str, int, TopicEvent | None], PartitionLog]


def boot_id() -> bytes:
    """A value that changes when the machine is restarted."""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, check=True).stdout.strip()  # noqa: S603 (a constant)
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()


def make_folders(files: Files, layout: DataLayout) -> None:
    """Create what is missing of a data directory, durably."""
    for path in (layout.path, layout.logs):
        _mkdir(files, path)
    if not files.exists(layout.meta_properties):
        # The directory's own name too: an acknowledgement in a directory that is gone is worth nothing. The
        # file comes last, because it tells the next process that this was done.
        files.fsync_directory(os.path.dirname(layout.path))
        files.fsync_directory(layout.path)
        files.replace_file(layout.meta_properties, encode_meta_properties(META_PROPERTIES))


def make_view_folders(files: Files, layout: DataLayout) -> None:
    for path in (layout.view, layout.locks, layout.processes, layout.signals):
        _mkdir(files, path)


def _mkdir(files: Files, path: str) -> None:
    try:
        files.mkdir(path)
    except FileExistsError:
        pass  # made by another process, or earlier


def open_view(files: Files, layout: DataLayout) -> View:
    """The view, with blocks for LMDB's table of readers: it is mapped, so that a full disk would be a SIGBUS there.

    For a process that has it not open: its locks go with any close of the file.

    Raises:
        ViewError, FileSystemError: it cannot be opened, or there is no space.
    """
    fd = files.open(f"{layout.view}/{LOCK_FILE}", create=True)
    try:
        files.allocate(fd, 0, LOCK_BYTES)
    finally:
        files.close(fd)
    return View(layout.view)


@contextmanager
def closed_on_failure(view: View) -> Iterator[None]:
    """Close *view* if the block fails: LMDB takes each file once a process, so that nobody could try again."""
    try:
        yield
    except BaseException:
        view.close()
        raise


def sound_view(files: Files, layout: DataLayout) -> View | None:
    """The view if it can be believed; None when it must be rebuilt. For the only process."""
    if not files.exists(f"{layout.view}/data.mdb"):
        return None
    if files.exists(f"{layout.view}/{DAMAGED_MARK}"):
        logger.warning("%s is marked as damaged: rebuilding it from the logs", layout.view)
        return None
    # Whoever dies of it leaves the mark.
    files.close(files.open(f"{layout.view}/{DAMAGED_MARK}", create=True))
    view = _checked_view(files, layout)
    if view is not None:
        with closed_on_failure(view):
            files.unlink(f"{layout.view}/{DAMAGED_MARK}")
    return view


def _checked_view(files: Files, layout: DataLayout) -> View | None:
    content = files.read_file(f"{layout.view}/data.mdb")
    damage = find_damage(content) if len(content) <= WALKED_BYTES else None
    if damage is not None:
        logger.warning("%s is damaged (%s): rebuilding it from the logs", layout.view, damage)
        return None
    try:
        view = open_view(files, layout)
    except ViewError as error:
        logger.warning("%s: rebuilding it from the logs", error)
        return None
    with closed_on_failure(view):
        try:
            reason = _why_not(view)
        except ViewError as error:
            reason = str(error)
    if reason is None:
        return view
    logger.info("%s is rebuilt from the logs: %s", layout.view, reason)
    view.close()
    return None


def _why_not(view: View) -> str | None:
    if view.meta_int(COMPLETE) != 1:
        return "its making was not finished"
    if view.meta_int(FORMAT) != VIEW_FORMAT:
        return f"its format is {view.meta_int(FORMAT)}, not {VIEW_FORMAT}"
    if view.meta_bytes(BOOT_ID) != boot_id():
        return "the machine was restarted"
    if view.entries() <= CHECKED_ENTRIES:
        view.check()
    return None


def cut_rooms(files: Files, layout: DataLayout, view: View) -> None:
    """Cut off the room that processes left which were killed. For the only process, whose view is true."""
    places = [(JOURNAL_TOPIC, JOURNAL_TOPIC_ID, 0)]
    for topic in view.events_of(TopicEvent, TopicEvent.ALL):
        if topic.state == "live":
            places += [(topic.name, topic.topic_id, number) for number in range(topic.partitions)]
    for name, topic_id, number in places:
        state = view.partition(partition_key(topic_id, number))
        if state is None:
            continue
        segment = SegmentFiles(files, layout.partition(name, number), state.end.active_base_offset)
        try:
            cut_room(files, segment, state.end.active_bytes)
        except OSError as error:
            logger.warning("%s: the room behind its end stays: %s", segment.log_path, error)
        finally:
            segment.close()


def rebuild_view(
    files: Files, layout: DataLayout, make_log: MakeLog, make_journal: Callable[[View], Journal]
) -> View:
    """Make the view from the logs, recovering every partition. For the only process."""
    if files.exists(layout.view):
        _remove_tree(files, layout.view)
    make_view_folders(files, layout)
    view = open_view(files, layout)
    with closed_on_failure(view):
        _fill_view(files, layout, view, make_log, make_journal(view))
    return view


def _fill_view(files: Files, layout: DataLayout, view: View, make_log: MakeLog, journal: Journal) -> None:
    points = _recovery_points(files, layout)
    if not files.exists(layout.partition(JOURNAL_TOPIC, 0)):
        create_partition_folder(files, layout.partition(JOURNAL_TOPIC, 0), JOURNAL_TOPIC_ID)
        files.fsync_directory(layout.logs)
    try:
        _recover(journal.log, points, 0)
        journal.replay()
        topics = _topics(view)
        _adopt_or_remove_strangers(files, layout, journal, topics)
    finally:
        journal.close()
        journal.log.release_files()
    for topic in topics.values():
        if topic.state == "live":
            for number in range(topic.partitions):
                _recover_partition(files, layout, make_log(view, topic.name, number, topic), points)
    with view.write() as transaction:
        view.put_meta_bytes(transaction, BOOT_ID, boot_id())
        view.put_meta_int(transaction, FORMAT, VIEW_FORMAT)
        view.put_meta_int(transaction, COMPLETE, 1)


def _topics(view: View) -> dict[str, TopicEvent]:
    return {event.name: event for event in view.events_of(TopicEvent, TopicEvent.ALL)}


def _recover_partition(
    files: Files, layout: DataLayout, log: PartitionLog, points: dict[tuple[str, int], int]
) -> None:
    if not files.exists(log.directory):
        logger.error("%s is missing: %s-%d begins empty", log.directory, log.topic, log.partition)
        create_partition_folder(files, log.directory, log.topic_id)
        files.fsync_directory(layout.logs)
    event = log.view.event_of(LogStartEvent, LogStartEvent.key_of(log.topic, log.partition))
    _recover(log, points, event.log_start_offset if event is not None else 0)
    if log.view.event(MessageIdEvent.key_of(log.topic)) is not None:
        restore(log)
    log.release_files()


def _recover(log: PartitionLog, points: dict[tuple[str, int], int], log_start_offset: int) -> None:
    point = points.get((log.topic, log.partition), 0)
    publish(log, recover_log(log, recovery_point=point, log_start_offset=log_start_offset))


def _recovery_points(files: Files, layout: DataLayout) -> dict[tuple[str, int], int]:
    """Offsets below which a partition was known to be on the disk; nothing for what was never noted."""
    try:
        entries: list[PartitionOffset] = parse_partition_offsets(files.read_file(layout.recovery_points))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        logger.error(
            "%s cannot be read (%s): every log is scanned from its start", layout.recovery_points, error
        )
        return {}
    return {(entry.topic, entry.partition): entry.offset for entry in entries}


def _adopt_or_remove_strangers(
    files: Files, layout: DataLayout, journal: Journal, topics: dict[str, TopicEvent]
) -> None:
    """Folders that no topic event names: a topic's creation or removal that was cut short, or a log that
    somebody put there. The first two are removed; records are never thrown away, so the last becomes a topic.
    """
    strangers: dict[str, list[int]] = {}
    remove_deleted_folders(files, layout.logs)
    for name in files.listdir(layout.logs):
        parsed = parse_partition_folder(name)
        if parsed is None or parsed == (JOURNAL_TOPIC, 0):
            continue
        topic, number = parsed
        known = topics.get(topic)
        if known is None or number >= known.partitions:
            strangers.setdefault(topic, []).append(number)
        elif known.state == "deleting" and topic_id_of(files, f"{layout.logs}/{name}") == known.topic_id:
            remove_folder(files, f"{layout.logs}/{name}")
    for topic, numbers in strangers.items():
        folders = [layout.partition(topic, number) for number in numbers]
        if not any(has_records(files, folder) for folder in folders):
            for folder in folders:
                remove_folder(files, folder)
            continue
        adopted = _adopted(files, layout, topic, numbers, topics.get(topic))
        logger.warning(
            "folders of %s-%s hold records but the journal does not know them: adopted", topic, numbers
        )
        journal.write([(adopted.key(), encode_event(adopted))])
        topics[topic] = adopted
    files.fsync_directory(layout.logs)


def _adopted(
    files: Files, layout: DataLayout, topic: str, numbers: list[int], known: TopicEvent | None
) -> TopicEvent:
    topic_id = known.topic_id if known else topic_id_of(files, layout.partition(topic, numbers[0]))
    return TopicEvent(
        name=topic,
        topic_id=topic_id or topic.encode()[:16].ljust(16, b"\0"),
        partitions=max(numbers) + 1,
        config=known.config if known else {},
        created_ms=0,
    )


def _remove_tree(files: Files, path: str) -> None:
    for name in files.listdir(path):
        child = f"{path}/{name}"
        try:
            files.unlink(child)
        except (IsADirectoryError, PermissionError):  # Linux, macOS
            _remove_tree(files, child)
    files.rmdir(path)
