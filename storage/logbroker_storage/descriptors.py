"""How many descriptors the logs of a directory may keep open, out of what the process is allowed.

A log opens up to six (two locks, three segment files, one to sync with), a reader one. A process with
many partitions would meet its limit (``ulimit -n``, often 1,024) long before it runs out of anything
else. So half of the limit is for logs and a quarter for readers; the rest is the user's.

    who       within the share          above it
    logs      keep theirs open          the one that was not used since the last look closes its own
    readers   keep theirs open          close theirs after each read, and look the place up again

The first is the second-chance algorithm: nearly least recently used, at the cost of one attribute a use.
"""

from __future__ import annotations

import resource
import threading
from typing import Protocol

DESCRIPTORS_OF_A_LOG = 6
LOGS_SHARE = 2  # one part in ...
READERS_SHARE = 4
LEAST = 4
UNLIMITED = 1 << 20


class OpenLog(Protocol):
    """What is asked of a log that has descriptors open."""

    is_deleted: bool
    """With its topic; guarded by the lock of ``Descriptors``."""
    used: bool
    """Since the last look."""

    def release_files(self) -> bool:
        """Close the descriptors; False where a thread is using the log now."""
        ...


def descriptor_limit() -> int:
    """How many descriptors this process may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return UNLIMITED if limit == resource.RLIM_INFINITY else limit


class Descriptors:
    """The logs and readers of one directory and process that have descriptors open. Thread-safe."""

    def __init__(self, limit: int | None = None) -> None:
        """*limit* is the number of descriptors to share out, the process's own by default."""
        limit = descriptor_limit() if limit is None else limit
        self.logs_limit = max(LEAST, limit // LOGS_SHARE // DESCRIPTORS_OF_A_LOG)
        self.readers_limit = max(LEAST, limit // READERS_SHARE)
        self._logs: dict[OpenLog, None] = {}  # in the order of their next look; guarded by _lock
        # Those of deleted topics that are still open; guarded by _lock.
        self._deleted: set[OpenLog] = set()
        # The readers' descriptors. Without the lock, which the thread may have that a dropped reader is collected in.
        self._readers: set[int] = set()
        self._lock = threading.Lock()

    def log_opened(self, log: OpenLog) -> None:
        """*log*, whose lock the caller holds, has opened a descriptor: another one may have to close its own."""
        with self._lock:
            if log.is_deleted:
                self._deleted.add(log)
            else:
                self._logs[log] = None
            self._close_deleted()
            looks = 2 * len(self._logs)  # a log in use is passed over, so two rounds find every idle one
            while len(self._logs) > self.logs_limit and looks:
                looks -= 1
                self._look(log)

    def log_deleted(self, log: OpenLog) -> None:
        """The topic of *log* is gone: close its descriptors, now or when nobody uses it any more, and forget it."""
        with self._lock:
            log.is_deleted = True
            self._logs.pop(log, None)
            self._deleted.add(log)
            self._close_deleted()

    def _close_deleted(self) -> None:
        """Under _lock."""
        self._deleted -= {log for log in self._deleted if log.release_files()}

    def _look(self, opened: OpenLog) -> None:
        """Close the descriptors of the log that is next, or give it a second chance. Under _lock."""
        log = next(iter(self._logs))
        del self._logs[log]
        if log is opened or log.used or not log.release_files():
            log.used = False
            self._logs[log] = None

    def reader_opened(self, fd: int) -> bool:
        """Count a reader's descriptor; False when it is one too many and must be closed after the read."""
        self._readers.add(fd)
        return len(self._readers) <= self.readers_limit

    def reader_closes(self, fd: int) -> None:
        """Count it no more; before it is closed, when its number may become another reader's at once."""
        self._readers.discard(fd)
