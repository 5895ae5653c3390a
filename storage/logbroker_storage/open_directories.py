"""The data directories that this process has open, and what a fork does to them.

One object a directory and process, however often it is opened: LMDB must not be opened twice in one process. It is
counted by its users and closed with the last of them.

    a fork          does
    before it       wait until no directory is being opened or closed, and nobody is in a view
    in the parent   nothing: it goes on
    in the child    abandon what was inherited, so that every use of it raises ``ForkedError``. The views are only
                    closed when the child opens their directories anew: that is right just before, and not earlier
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from .errors import ClosedError, ForkedError
from .files import identity_of

if TYPE_CHECKING:
    from .data_directory import DataDirectory
    from .view import View


class _Inherited(NamedTuple):
    """The view of a directory of the parent process, in a forked child."""

    identity: tuple[int, int]
    view: View
    is_idle: bool  # no thread was inside LMDB at the fork


_lock = threading.Lock()
_open: dict[tuple[int, int], DataDirectory] = {}  # by device and inode; guarded by _lock
_in_use: set[DataDirectory] = set()  # those whose views the last fork did not find idle; guarded by _lock
_inherited: list[_Inherited] = []  # guarded by _lock


def use(path: str, make: Callable[[], DataDirectory]) -> DataDirectory:
    """One more use of the directory at *path*: the object that is there, else that of *make*."""
    identity = identity_of(path)
    with _lock:
        _close_inherited(identity)
        directory = _open.get(identity)
        if directory is None:
            directory = _open[identity] = make()
        directory.users += 1
    return directory


def use_again(directory: DataDirectory) -> None:
    """One more use of *directory*, which somebody uses."""
    with _lock:
        if directory.closed:
            raise ClosedError.in_use()
        directory.users += 1


def leave(directory: DataDirectory) -> None:
    """One use less; with the last, *directory* is shut down."""
    if directory.closed:
        return  # before the lock, which at the interpreter's end nobody may give back
    with _lock:
        if directory.was_left:
            return
        directory.users -= 1
        if directory.users:
            return
        _forget(directory)
        directory.was_left = True
        directory.shut_down()


def forget(directory: DataDirectory) -> None:
    """Open it anew for the next who comes, whoever uses *directory* now."""
    with _lock:
        _forget(directory)


def _forget(directory: DataDirectory) -> None:
    for identity, known in list(_open.items()):
        if known is directory:
            del _open[identity]


# Fork -------------------------------------------------------------------------------------------------


class Forked:
    """Stands in for everything that a forked child inherited and must not use."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ForkedError("this broker")

    def __enter__(self) -> NoReturn:
        raise ForkedError("this broker")

    def __exit__(self, *_: object) -> None: ...


def _close_inherited(identity: tuple[int, int]) -> None:
    """In a forked child that opens a directory of its parent's: LMDB takes each file once a process."""
    for inherited in list(_inherited):
        if inherited.identity == identity:
            if not inherited.is_idle:
                raise ForkedError("a view in the middle of a transaction")
            inherited.view.close()
            _inherited.remove(inherited)


def _before_fork() -> None:
    _lock.acquire()
    _in_use.clear()
    for directory in _open.values():
        if not directory.view.gate.shut():
            _in_use.add(directory)


def _after_fork_in_parent() -> None:
    for directory in _open.values():
        directory.view.gate.open()
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for identity, directory in _open.items():
        _inherited.append(_Inherited(identity, directory.view, directory not in _in_use))
        directory.abandon()
    _open.clear()
    _in_use.clear()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
