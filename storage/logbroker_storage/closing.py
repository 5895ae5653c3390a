"""What a log leaves in its files when a process closes it, so that the next one need not work it out.

    time index       its last entry
    log file         without its room
    checksums        of the active segment's indexes
    snapshot         of the producers, at the log's end

All of it can be made anew from the batches: where it cannot be written, the next one reads more.
"""

from __future__ import annotations

import logging

from .active_segment import ActiveSegment
from .adoption import writable_end
from .errors import WriteFailedError
from .index_files import write_checksums
from .local_log import LocalLog
from .side_files import cut_room
from .snapshot_files import write_snapshot

logger = logging.getLogger("logbroker.storage")


def leave_caches(log: LocalLog, active: ActiveSegment) -> None:
    """Leave all of it, unless the partition takes no writes any more."""
    with log.append_lock:
        state = log.state()
        if state.sync.failed:
            return
        try:
            end = writable_end(log, active, state)
            active.files(end).cut_room(end.active_bytes)
            log.publish_end(active.seal(end))
            write_checksums(log.files, log.directory, end.active_base_offset)
            producers = log.view.partitions.producers(log.key)
            write_snapshot(log.files, log.directory, end.log_end_offset, producers)
        except (OSError, WriteFailedError) as error:
            logger.warning("%s: closed without its time index or snapshot: %s", log.directory, error)


def leave_no_room(log: LocalLog, active: ActiveSegment) -> None:
    """Leave the log file without its room: for who has appended nothing.

    Raises:
        OSError: it could not be cut.
    """
    with log.append_lock:
        end, sync = log.state()
        if not sync.failed:
            cut_room(log.files, active.files(end), end.active_bytes)
