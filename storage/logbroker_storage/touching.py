"""Touches: how a writer wakes whoever waits for news, in any process (``wakeup``).

What is touched is a file in ``view/``: a partition's ``.append`` or ``.sync`` file, or a named signal's.

With inotify, a touch *reads* a byte (IN_ACCESS): a write would change the file's times, and the next sync of the log
would have to put that on the disk too (40 µs more a sync, measured on ext4). Where there is none (macOS), it writes
a few random bytes.
"""

from __future__ import annotations

import os
import sys

from .files import Files

APPEND_SUFFIX = ".append"
SYNC_SUFFIX = ".sync"
TOUCH_BYTES = 8
HAS_INOTIFY = sys.platform.startswith("linux")


def make_touchable(files: Files, fd: int) -> None:
    """Have the file of *fd* hold bytes, as a touch reads one: a full disk must not keep anybody from touching."""
    if not files.size(fd):
        files.pwrite(fd, os.urandom(TOUCH_BYTES), 0)


def touch(files: Files, fd: int) -> None:
    """Wake whoever watches the file of *fd*, which holds bytes."""
    if HAS_INOTIFY:
        files.pread(fd, 1, 0)
    else:
        files.pwrite(fd, os.urandom(TOUCH_BYTES), 0)


def signal_paths(lock_path: str) -> tuple[str, str]:
    """The files that are touched when a partition's records become visible: its two locks' own."""
    return lock_path + APPEND_SUFFIX, lock_path + SYNC_SUFFIX
