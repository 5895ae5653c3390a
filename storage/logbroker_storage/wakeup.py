"""Waiting for news from any process: inotify on the files that writers touch.

A writer that publishes something touches a file (``touching``). A waiter watches the files it cares about. The
order is always: watch, then look, then wait; a touch between the last two ends the wait at once.

Where there is no inotify (macOS), the waiter compares modification times, every millisecond at first and ever
more slowly up to every 20. File systems count time in ticks (milliseconds on ext4, a second on HFS+), so two
touches may leave the same time: as long as a file's time is fresh, its bytes are compared too.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from . import touching
from .errors import ClosedError, ForkedError, file_system_error

if TYPE_CHECKING:
    from .data_directory import DataDirectory

_IN_ACCESS = 0x00000001
_IN_MODIFY = 0x00000002
_TOUCHED = _IN_ACCESS | _IN_MODIFY
_IN_CLOSE_WRITE = 0x00000008
_IN_Q_OVERFLOW = 0x00004000
_EVENT = struct.Struct("iIII")
_READ_BYTES = 16384

FIRST_POLL_S = 0.001
LAST_POLL_S = 0.020
FRESH_NS = 3_000_000_000  # longer than a tick of any file system's clock


class Waiter:
    """Waits for touches of watched files, or for ``wake()``. One thread waits; any thread may wake.

    One that is dropped without ``close`` gives its descriptors back, as a file does: inotify allows a user few.
    """

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._closed = True  # until its descriptors are open
        try:
            self._wake_read, self._wake_write = (
                os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if touching.HAS_INOTIFY else _pipe()
            )
        except OSError as error:
            raise file_system_error(error) from error
        try:
            self._watcher: _Inotify | _Polling = _Inotify() if touching.HAS_INOTIFY else _Polling()
        except BaseException:
            os.close(self._wake_read)
            os.close(self._wake_write)
            raise
        self._poll = select.poll()
        self._poll.register(self._wake_read, select.POLLIN)
        if self._watcher.fd >= 0:
            self._poll.register(self._watcher.fd, select.POLLIN)
        self._closed = False
        # Also held by ``wake`` while it writes: a descriptor that is closed meanwhile may be another file's
        # by then, and the byte would land there. Reentrant, for a signal handler may wake, too.
        self._closing = threading.RLock()
        self._pid = os.getpid()

    def watch_partition(self, topic: str, partition: int) -> None:
        """From now on a record that becomes visible there ends a wait. Watching twice is watching once."""
        self._check_usable()
        for path in self._directory.log(topic, partition).signal_paths():
            self._watcher.watch(path)

    def unwatch_partition(self, topic: str, partition: int) -> None:
        """No longer watch a partition, which may be gone meanwhile."""
        lock_path = self._directory.layout.partition_lock(topic, partition)
        for path in touching.signal_paths(lock_path):
            self._watcher.unwatch(path)

    def watch_signal(self, name: str) -> None:
        """From now on ``DataDirectory.signal(name)``, by any process, ends a wait."""
        self._check_usable()
        self._watcher.watch(self._directory.signal_path(name))

    def unwatch_signal(self, name: str) -> None:
        self._watcher.unwatch(self._directory.layout.signal(name))

    def watch_process(self, process_id: str) -> bool:
        """From now on the death of another process, or its leaving the directory, ends a wait.

        False when the waiter cannot tell: the process is gone already, or there is no inotify, which sees
        that the kernel closes the dead process's own file. Then ``process_alive`` has to be asked.
        """
        self._check_usable()
        if self._watcher.fd < 0:
            return False
        try:
            self._watcher.watch(self._directory.layout.process(process_id), _IN_CLOSE_WRITE)
        except FileNotFoundError:
            return False
        return True

    def unwatch_process(self, process_id: str) -> None:
        self._watcher.unwatch(self._directory.layout.process(process_id))

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until something was touched since the last wait, or ``wake()`` was called.

        Returns False when *timeout_s* passed first; None waits for ever.
        """
        self._check_usable()
        if self._watcher.fd < 0:
            return self._wait_polling(timeout_s)
        ready = self._poll.poll(None if timeout_s is None else max(0, timeout_s * 1000))
        self._drain(fd for fd, _ in ready)
        return bool(ready)

    def _check_usable(self) -> None:
        if self._closed:
            raise ClosedError("the waiter is closed")
        if self._pid != os.getpid():
            raise ForkedError("this waiter")  # its descriptors are the parent's: we would take its wake-ups

    def wake(self) -> None:
        """End the current wait, or the next one. Safe from any thread and from signal handlers."""
        if self._pid != os.getpid():
            return
        with self._closing:
            if self._closed:
                return
            try:
                os.write(self._wake_write, b"\0")
            except BlockingIOError:
                pass  # the pipe is full of wake-ups already

    def take(self) -> list[str]:
        """The watched files that were touched since the last take or wait, without waiting; for an event loop.

        Call it when ``fileno`` is readable, or now and then where there is no inotify.
        """
        self._check_usable()
        return self._watcher.take()

    def fileno(self) -> int:
        """A descriptor that is readable when a watched file was touched (-1 where there is no inotify)."""
        return self._watcher.fd

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._close_descriptors()

    def __del__(self) -> None:
        # No lock: nobody has it any more who is alive, but a thread that did not come along to a forked child.
        if not self._closed:
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._watcher.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _drain(self, descriptors: Iterable[int]) -> None:
        for fd in descriptors:
            try:
                while len(os.read(fd, _READ_BYTES)) == _READ_BYTES:
                    pass
            except BlockingIOError:
                pass  # another event of the same batch was read with the last one

    def _wait_polling(self, timeout_s: float | None) -> bool:
        assert isinstance(self._watcher, _Polling)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pause = FIRST_POLL_S
        while True:
            if self._watcher.take():
                return True
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if self._poll.poll(max(0, left * 1000)):
                self._drain([self._wake_read])
                return True
            if left <= 0:
                return False
            pause = min(pause * 1.5, LAST_POLL_S)


def _pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    return read_end, write_end


class _Inotify:
    """inotify(7) through ctypes: the standard library has no binding."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise self._error("inotify_init1")
        self._watches: dict[str, int] = {}
        self._paths: dict[int, str] = {}  # the other way round

    def watch(self, path: str, events: int = _TOUCHED) -> None:
        if path in self._watches:
            return
        watch = self._libc.inotify_add_watch(self.fd, os.fsencode(path), events)
        if watch < 0:
            raise self._error(f"inotify_add_watch {path}")
        self._watches[path] = watch
        self._paths[watch] = path

    def unwatch(self, path: str) -> None:
        watch = self._watches.pop(path, None)
        if watch is not None:
            self._paths.pop(watch, None)
            self._libc.inotify_rm_watch(self.fd, watch)

    def take(self) -> list[str]:
        touched: dict[int, None] = {}
        try:
            while events := os.read(self.fd, _READ_BYTES):
                position = 0
                while position < len(events):
                    watch, mask, _, name_bytes = _EVENT.unpack_from(events, position)
                    position += _EVENT.size + name_bytes
                    if mask & _IN_Q_OVERFLOW:
                        return list(self._watches)  # events were lost: it may be any of them
                    touched[watch] = None
        except BlockingIOError:
            pass  # that was the last one
        return [self._paths[watch] for watch in touched if watch in self._paths]

    def close(self) -> None:
        os.close(self.fd)

    def _error(self, what: str) -> OSError:
        code = ctypes.get_errno()
        reason = f"{what}: {os.strerror(code)} (see fs.inotify.max_user_instances and max_user_watches)"
        return file_system_error(OSError(code, reason))


class _Look(NamedTuple):
    """What a file looked like; *content* is None when its time was old enough to tell by itself."""

    modified_ns: int
    content: bytes | None


class _Polling:
    """Modification times, while fresh with the bytes, compared with those of the last look."""

    fd = -1

    def __init__(self) -> None:
        self._seen: dict[str, _Look] = {}

    def watch(self, path: str, events: int = _TOUCHED) -> None:  # noqa: ARG002 (as inotify's)
        if path not in self._seen:
            self._seen[path] = self._look(path, None)

    def unwatch(self, path: str) -> None:
        self._seen.pop(path, None)

    def take(self) -> list[str]:
        found: list[str] = []
        for path, before in self._seen.items():
            now = self._look(path, before)
            if now.modified_ns != before.modified_ns or (
                before.content is not None and now.content != before.content
            ):
                found.append(path)
            if now.content is not None and time.time_ns() - now.modified_ns > FRESH_NS:
                now = _Look(now.modified_ns, None)  # a later touch leaves another time
            self._seen[path] = now
        return found

    def _look(self, path: str, before: _Look | None) -> _Look:
        modified_ns = os.stat(path).st_mtime_ns
        is_fresh = time.time_ns() - modified_ns <= FRESH_NS
        if is_fresh or (before is not None and before.content is not None):
            with open(path, "rb") as file:
                return _Look(modified_ns, file.read(touching.TOUCH_BYTES))
        return _Look(modified_ns, None)

    def close(self) -> None:
        self._seen.clear()
