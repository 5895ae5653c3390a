"""The folders of a topic's partitions on disk: made before the topic is journaled, removed after it is gone.

create   folders, files, syncs; then the journal's TopicEvent. Dying in between leaves folders without
         records and without a topic: removed by the next process that comes alone.
delete   the journal's TopicEvent(state="deleting"); then each folder is renamed to
         ``<topic>-<n>.<topic id>-delete`` (a long topic cut short); then the event is deleted, and the
         folders are emptied. Dying in between leaves the event or such folders, and whoever opens the
         directory next goes on.
"""

from __future__ import annotations

import errno
import logging

from .checkpoints import (
    LEADER_EPOCH_CHECKPOINT,
    PARTITION_METADATA,
    EpochStart,
    encode_leader_epochs,
    encode_partition_metadata,
    parse_leader_epochs,
    parse_partition_metadata,
)
from .files import Files, put_file, write_synced
from .layout import MAX_STEM_CHARACTERS
from .segment_files import SegmentFiles, list_segments
from .side_files import keep_aside

logger = logging.getLogger("logbroker.recovery")

DELETED_SUFFIX = "-delete"


def create_partition_folder(files: Files, directory: str, topic_id: bytes) -> None:
    """Make a partition's folder with an empty first segment, durable but for its own directory entry.

    Raises:
        FileExistsError: see ``check_free``.
    """
    check_free(files, directory)
    if files.exists(directory):
        remove_folder(files, directory)  # a creation that was cut short
    files.mkdir(directory)
    write_synced(files, f"{directory}/{PARTITION_METADATA}", encode_partition_metadata(topic_id))
    write_synced(files, f"{directory}/{LEADER_EPOCH_CHECKPOINT}", encode_leader_epochs([EpochStart(0, 0)]))
    segment = SegmentFiles(files, directory, 0)
    segment.create()
    segment.close()
    # One sync of the folder for all its names: until the topic is journaled, nobody looks at any of them.
    files.fsync_directory(directory)


def check_free(files: Files, directory: str) -> None:
    """Whether a partition's folder can be made there.

    Raises:
        FileExistsError: a folder is there that holds records of no known topic; it must be left alone.
    """
    if files.exists(directory) and has_records(files, directory):
        raise FileExistsError(errno.EEXIST, "a folder with records of no known topic is there", directory)


def topic_id_of(files: Files, directory: str) -> bytes | None:
    """The topic id in a partition folder; None when the file is missing or malformed."""
    try:
        return parse_partition_metadata(files.read_file(f"{directory}/{PARTITION_METADATA}"))
    except (FileNotFoundError, ValueError):
        return None


def mend_metadata(files: Files, directory: str, topic_id: bytes) -> None:
    """Write the two small files anew where they do not say what they must; a damaged one is kept aside.

    Not synced: what a power cut leaves of them is mended again.
    """
    if topic_id_of(files, directory) != topic_id:
        _rewrite(files, f"{directory}/{PARTITION_METADATA}", encode_partition_metadata(topic_id))
    if not _has_our_epochs(files, directory):
        _rewrite(files, f"{directory}/{LEADER_EPOCH_CHECKPOINT}", encode_leader_epochs([EpochStart(0, 0)]))


def _has_our_epochs(files: Files, directory: str) -> bool:
    try:
        epochs = parse_leader_epochs(files.read_file(f"{directory}/{LEADER_EPOCH_CHECKPOINT}"))
    except (FileNotFoundError, ValueError):
        return False
    return epochs == [EpochStart(0, 0)]


def _rewrite(files: Files, path: str, content: bytes) -> None:
    if files.exists(path):
        logger.warning("%s is damaged: written anew, kept as %s", path, keep_aside(files, path))
    put_file(files, path, content)


def has_records(files: Files, directory: str) -> bool:
    """Whether any log file of a partition folder holds bytes."""
    for base in list_segments(files, directory):
        segment = SegmentFiles(files, directory, base)
        try:
            if segment.log_bytes():
                return True
        finally:
            segment.close()
    return False


def remove_partition_folder(files: Files, directory: str, topic_id: bytes) -> None:
    """Rename the folder out of the way, then empty and remove it. A missing one is fine."""
    doomed = move_aside(files, directory, topic_id)
    if files.exists(doomed):
        remove_folder(files, doomed)


def move_aside(files: Files, directory: str, topic_id: bytes) -> str:
    """Rename a partition's folder out of the way, for removal; the new path. A missing one is fine."""
    logs, _, name = directory.rpartition("/")
    topic, _, number = name.rpartition("-")
    doomed = f"{logs}/{topic[:MAX_STEM_CHARACTERS]}-{number}.{topic_id.hex()}{DELETED_SUFFIX}"
    try:
        files.rename(directory, doomed)
    except FileNotFoundError:
        pass  # a process that died had come this far
    return doomed


def remove_deleted_folders(files: Files, logs: str) -> None:
    """Remove the folders that a process moved aside and died before it had removed them."""
    for name in files.listdir(logs):
        if name.endswith(DELETED_SUFFIX):
            remove_folder(files, f"{logs}/{name}")


def remove_folder(files: Files, directory: str) -> None:
    """Remove a folder and its files. Two processes may be at it at once: what is gone is fine."""
    try:
        for name in files.listdir(directory):
            _unlink_if_there(files, f"{directory}/{name}")
        files.rmdir(directory)
    except FileNotFoundError:
        pass  # the other process was faster


def _unlink_if_there(files: Files, path: str) -> None:
    try:
        files.unlink(path)
    except FileNotFoundError:
        pass  # the other process was faster
