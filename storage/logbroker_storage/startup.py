"""Opening a data directory: is the view still true, and if not, build it from the logs.

Under the opening lock, the first process to come (it can take the presence lock exclusively) decides:

    the view                                       then
    is missing, unreadable, or marked damaged      rebuild
    is not what its last process left (checksum)   rebuild: it is damaged, or somebody has put an older one back
    has pages that do not hold together            rebuild (looked at where there is no checksum: a process was killed)
    was the end of the last one who looked at it   rebuild: LMDB dies of damaged pages
    is of another boot or another format           rebuild: it was never synced
    fails its checksums                            rebuild
    knows a partition whose folder is gone         write the journal again if it is lost, too; rebuild
    does not know a segment that holds bytes       rebuild: it is older than the logs, somebody has put it back
    is sound                                       use it; forget volatile facts; verify failed partitions; take
                                                     away what killed processes left half-made

A later process finds the presence lock shared: the view is in use, so it is true. The last one to leave notes the
checksum of the view's file, which the next first one takes away before it uses it.
"""

from __future__ import annotations

import bisect
import logging
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .checkpoints import (
    PartitionOffset,
    encode_meta_properties,
    parse_meta_properties,
    parse_partition_offsets,
)
from .crc32c import crc32c
from .deduplication import restore
from .errors import FileSystemError, InvalidRequestError, ViewError
from .events import LogStartEvent, MessageIdEvent, TopicEvent
from .files import Files, remove_temporaries
from .journal import JOURNAL_TOPIC, JOURNAL_TOPIC_ID, Journal
from .layout import DataLayout
from .partition_log import PartitionLog
from .recovery import publish, recover_log, sweep_leftovers
from .segment_files import SegmentFiles, list_segments
from .side_files import cut_room, remove_unpublished
from .strangers import settle_strangers
from .topic_folders import (
    create_partition_folder,
    mend_metadata,
    remove_deleted_folders,
)
from .touching import signal_paths
from .view import LogEnd, View, partition_key
from .view.environment import DAMAGED_MARK, LOCK_BYTES, LOCK_FILE
from .view.pages import find_damage
from .view.tables import TABLES, VIEW_FORMAT

logger = logging.getLogger("logbroker.recovery")

BOOT_ID = b"boot_id"
FORMAT = b"format"
COMPLETE = b"complete"  # 1 when the rebuild that made the view came to its end
# What the logs knew when the view was made. The journal says more, unless that very event is damaged: an id that
# is given out twice would have the second holder's batches taken for duplicates of the first's.
USED_PRODUCER_IDS_END = b"used_producer_ids_end"

CHECKSUM = struct.Struct(">QI")  # the size of data.mdb, and its CRC-32C
CHECKSUMMED_BYTES = 64 << 20  # a larger view takes too long to sum at every open and close: 1 ms a MiB
SUMMED_AT_ONCE_BYTES = 1 << 20
WALKED_BYTES = 32 << 20  # a larger view takes too long to walk: 10 ms a MiB
CHECKED_ENTRIES = 100_000  # a larger view is checked value by value as it is read

KERNELS_BOOT_ID = "/proc/sys/kernel/random/boot_id"

FORMAT_KEY = "logbroker.format"
DIRECTORY_FORMAT = 1
META_PROPERTIES = {"version": "1", FORMAT_KEY: str(DIRECTORY_FORMAT)}

MakeLog = Callable[[View, str, int, TopicEvent | None], PartitionLog]
KnownEnds = Sequence[tuple[str, LogEnd]]  # by the folders of their logs


def boot_id() -> bytes:
    """A value that changes when the machine is restarted.

    Raises:
        FileSystemError: the system does not tell it.
    """
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, check=True).stdout.strip()  # noqa: S603 (a constant)
    try:
        with open(KERNELS_BOOT_ID, "rb") as file:
            return file.read().strip()
    except OSError as error:
        reason = f"{error.strerror}: without /proc it cannot be told whether the machine was restarted"
        raise FileSystemError(error.errno, reason, KERNELS_BOOT_ID) from error


def make_folders(files: Files, layout: DataLayout) -> None:
    """Create what is missing of a data directory, durably."""
    for path in (layout.path, layout.logs):
        _mkdir(files, path)
    if files.exists(layout.meta_properties):
        _check_format(files, layout)
    else:
        # The directory's own name too: an acknowledgement in a directory that is gone is worth nothing. The
        # file comes last, because it tells the next process that this was done.
        files.fsync_directory(os.path.dirname(layout.path))
        files.fsync_directory(layout.path)
        files.replace_file(layout.meta_properties, encode_meta_properties(META_PROPERTIES))


def _check_format(files: Files, layout: DataLayout) -> None:
    """Raise ``InvalidRequestError`` for a directory of a newer version. What cannot be read says nothing."""
    try:
        noted = int(parse_meta_properties(files.read_file(layout.meta_properties))[FORMAT_KEY])
    except (ValueError, KeyError):
        return
    if noted > DIRECTORY_FORMAT:
        raise InvalidRequestError(
            f"{layout.meta_properties} says {FORMAT_KEY}={noted}, and this version knows {DIRECTORY_FORMAT}: open the "
            "directory with the version that wrote it"
        )


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
    noted = _take_checksum(files, layout)
    if not files.exists(layout.view_data):
        return None
    if files.exists(f"{layout.view}/{DAMAGED_MARK}"):
        logger.warning("%s is marked as damaged: rebuilding it from the logs", layout.view)
        return None
    # Whoever dies of it leaves the mark.
    files.close(files.open(f"{layout.view}/{DAMAGED_MARK}", create=True))
    try:
        view = _checked_view(files, layout, noted)
    except BaseException:
        # No descriptor or no memory was to be had, or Ctrl-C came: that says nothing about the pages.
        files.unlink(f"{layout.view}/{DAMAGED_MARK}")
        raise
    if view is not None:
        with closed_on_failure(view):
            files.unlink(f"{layout.view}/{DAMAGED_MARK}")
    return view


def _checked_view(files: Files, layout: DataLayout, noted: bytes | None) -> View | None:
    damage = damage_of_view(files, layout, noted)
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
            reason = _why_not(view, is_checked=noted is not None)
        except ViewError as error:
            reason = str(error)
    if reason is None:
        return view
    logger.info("%s is rebuilt from the logs: %s", layout.view, reason)
    view.close()
    return None


def _take_checksum(files: Files, layout: DataLayout) -> bytes | None:
    """What the last process noted; None where it was killed, or the view is too large. From now on it is not true."""
    if not files.exists(layout.view_checksum):
        return None
    noted = files.read_file(layout.view_checksum)
    files.unlink(layout.view_checksum)
    return noted if len(noted) == CHECKSUM.size else None  # a shorter one is torn


def damage_of_view(files: Files, layout: DataLayout, noted: bytes | None) -> str | None:
    """What is wrong with the view's file, before LMDB is let near it; *noted* is its checksum, None without one."""
    if noted is not None:
        return None if _checksum(files, layout.view_data) == noted else "it fails its checksum"
    content = files.read_file(layout.view_data)
    return find_damage(content, TABLES) if len(content) <= WALKED_BYTES else None


def _checksum(files: Files, path: str) -> bytes:
    fd = files.open(path, readonly=True)
    try:
        crc = position = 0
        while piece := files.pread(fd, SUMMED_AT_ONCE_BYTES, position):
            crc = crc32c(piece, crc)
            position += len(piece)
        return CHECKSUM.pack(position, crc)
    finally:
        files.close(fd)


def _size(files: Files, path: str) -> int:
    fd = files.open(path, readonly=True)
    try:
        return files.size(fd)
    finally:
        files.close(fd)


def note_checksum(files: Files, layout: DataLayout) -> None:
    """Vouch for the view's file as it is. For the only process, behind ``View.close``. Not synced: nor is the view."""
    path = layout.view_data
    try:
        if _size(files, path) > CHECKSUMMED_BYTES:
            return
        fd = files.open(layout.view_checksum, create=True)
        try:
            files.truncate(fd, 0)
            files.pwrite(fd, _checksum(files, path), 0)
        finally:
            files.close(fd)
    except OSError as error:
        logger.info(
            "%s: its checksum could not be noted, so the next open looks at every page: %s", path, error
        )


def _why_not(view: View, *, is_checked: bool) -> str | None:
    if view.meta_int(COMPLETE) != 1:
        return "its making was not finished"
    if view.meta_int(FORMAT) != VIEW_FORMAT:
        return f"its format is {view.meta_int(FORMAT)}, not {VIEW_FORMAT}"
    if view.meta_bytes(BOOT_ID) != boot_id():
        return "the machine was restarted"
    if not is_checked and view.entries() <= CHECKED_ENTRIES:
        view.check()
        view.partitions.check()
    return None


def missing_folder(files: Files, layout: DataLayout, view: View) -> str | None:
    """A partition's folder that is gone and that the view knows; the others would not be readable beside it."""
    there = set(files.listdir(layout.logs))
    for topic in view.events.all(TopicEvent, TopicEvent.ALL):
        if topic.state == "live":
            for number in range(topic.partitions):
                path = layout.partition(topic.name, number)
                if os.path.basename(path) not in there:
                    return path
    return None


def unknown_segment(files: Files, ends: KnownEnds) -> str | None:
    """A segment that holds bytes, above the one that is the active one by the view.

    No process leaves one: it publishes a segment before it writes there (``rolling``).
    """
    for directory, end in ends:
        try:
            bases = list_segments(files, directory)
            for base in bases[bisect.bisect_right(bases, end.active_base_offset) :]:
                path = SegmentFiles(files, directory, base).log_path
                if _size(files, path):
                    return path
        except OSError:
            continue  # it says nothing, and whoever uses it is told
    return None


def known_ends(layout: DataLayout, view: View) -> KnownEnds:
    """The folder of each partition that the view knows, the journal's too, and where its log ends."""
    places = [(JOURNAL_TOPIC, JOURNAL_TOPIC_ID, 0)]
    for topic in view.events.all(TopicEvent, TopicEvent.ALL):
        if topic.state == "live":
            places += [(topic.name, topic.topic_id, number) for number in range(topic.partitions)]
    found = []
    for name, topic_id, number in places:
        state = view.partitions.state(partition_key(topic_id, number))
        if state is not None:
            found.append((layout.partition(name, number), state.end))
    return found


def make_journal_folder(files: Files, layout: DataLayout) -> None:
    """Make the journal's folder, where it is missing."""
    folder = layout.partition(JOURNAL_TOPIC, 0)
    if not files.exists(folder):
        _make_again(files, layout, folder, JOURNAL_TOPIC_ID)


def remove_leftovers(files: Files, layout: DataLayout, view: View, ends: KnownEnds) -> None:
    """Take away what killed processes left half-made. For the only process, whose view is true.

    left                          of
    room behind a log's end       appending (``segment_files``)
    a segment above the last one  rolling
    temporary files               replacing a file: those of partitions, and the recovery points
    indexes without a log         removing a segment
    replacements                  compaction (``segment_replacement``): finished, or removed
    folders that were moved aside deleting a topic
    locks of topics that are gone deleting a topic (see ``_sweep_locks_and_signals``), and every signal
    """
    remove_deleted_folders(files, layout.logs)
    make_journal_folder(files, layout)
    _sweep_locks_and_signals(files, layout, view)
    remove_temporaries(
        files, layout.logs, files.listdir(layout.logs), os.path.basename(layout.recovery_points)
    )
    for directory, end in ends:
        _remove_leftovers_of(files, directory, end)


def _remove_leftovers_of(files: Files, directory: str, end: LogEnd) -> None:
    segment = SegmentFiles(files, directory, end.active_base_offset)
    try:
        cut_room(files, segment, end.active_bytes)
        remove_unpublished(files, directory, end.active_base_offset)
        sweep_leftovers(files, directory)
    except OSError as error:
        logger.warning("%s: what a process left behind its end stays: %s", segment.log_path, error)
    finally:
        segment.close()


def _sweep_locks_and_signals(files: Files, layout: DataLayout, view: View) -> None:
    """Remove the lock files of topics that are gone, and every signal. For the only process: nobody has one open.

    Not when a topic is deleted: who waits for a lock, or watches its file, must not be left with one that nobody
    else can find any more.
    """
    topics = [event for event in view.events.all(TopicEvent, TopicEvent.ALL) if event.state == "live"]
    stems = [layout.topic_lock(event.name) for event in topics]
    for event in topics:
        for number in range(event.partitions):
            stems += signal_paths(layout.partition_lock(event.name, number))
    stems += [
        *signal_paths(layout.partition_lock(JOURNAL_TOPIC, 0)),
        layout.lock("journal"),
        layout.lock("cleaner"),
    ]
    known = set(stems)
    for folder in (layout.locks, layout.signals):
        for name in files.listdir(folder):
            if (path := f"{folder}/{name}") not in known:
                files.unlink(path)


def rebuild_view(
    files: Files, layout: DataLayout, make_log: MakeLog, make_journal: Callable[[View], Journal]
) -> View:
    """Make the view from the logs, recovering every partition. For the only process."""
    if files.exists(layout.view):
        _empty(files, layout.view)
    make_view_folders(files, layout)
    view = open_view(files, layout)
    with closed_on_failure(view):
        _fill_view(files, layout, view, make_log, make_journal(view))
    return view


def _fill_view(files: Files, layout: DataLayout, view: View, make_log: MakeLog, journal: Journal) -> None:
    points = _recovery_points(files, layout)
    if not files.exists(layout.partition(JOURNAL_TOPIC, 0)):
        create_partition_folder(files, layout.partition(JOURNAL_TOPIC, 0), JOURNAL_TOPIC_ID)
    try:
        _recover(journal.log, points, 0)
        journal.replay()
        topics = _topics(view)
        settle_strangers(files, layout, journal, topics)
    finally:
        journal.close()
        journal.log.release_files()
    for topic in topics.values():
        if topic.state == "live":
            for number in range(topic.partitions):
                _recover_partition(files, layout, make_log(view, topic.name, number, topic), points)
    used_ids_end = view.partitions.used_producer_ids_end()
    with view.write() as transaction:
        view.put_meta_int(transaction, USED_PRODUCER_IDS_END, used_ids_end)
        view.put_meta_bytes(transaction, BOOT_ID, boot_id())
        view.put_meta_int(transaction, FORMAT, VIEW_FORMAT)
        view.put_meta_int(transaction, COMPLETE, 1)


def _topics(view: View) -> dict[str, TopicEvent]:
    return {event.name: event for event in view.events.all(TopicEvent, TopicEvent.ALL)}


def _make_again(files: Files, layout: DataLayout, folder: str, topic_id: bytes) -> None:
    create_partition_folder(files, folder, topic_id)
    files.fsync_directory(layout.logs)


def _recover_partition(
    files: Files, layout: DataLayout, log: PartitionLog, points: dict[tuple[str, int], int]
) -> None:
    if not files.exists(log.directory):
        logger.error("%s is missing: %s-%d begins empty", log.directory, log.topic, log.partition)
        _make_again(files, layout, log.directory, log.topic_id)
    event = log.view.events.get(LogStartEvent, LogStartEvent.key_of(log.topic, log.partition))
    _recover(log, points, event.log_start_offset if event is not None else 0)
    if log.view.events.value(MessageIdEvent.key_of(log.topic)) is not None:
        restore(log)
    log.release_files()


def _recover(log: PartitionLog, points: dict[tuple[str, int], int], log_start_offset: int) -> None:
    sweep_leftovers(log.files, log.directory)
    mend_metadata(log.files, log.directory, log.topic_id)
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


def _empty(files: Files, path: str) -> None:
    """Remove everything in the folder *path*, but not itself: the view's may be a link, or a mount."""
    for name in files.listdir(path):
        child = f"{path}/{name}"
        try:
            files.unlink(child)
        except (IsADirectoryError, PermissionError):  # Linux, macOS
            _empty(files, child)
            files.rmdir(child)
