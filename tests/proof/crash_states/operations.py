"""What a program does to files and directories, as the states of a power cut are made from it.

Files and directories are inodes, known by numbers; the root directory is number 0. Promises that the
program was given in between (``Told``) stand in the same list, so that of every state it is known what was
promised by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .promises import Promises

ROOT = 0


class Write(NamedTuple):
    """Bytes were written at a position; the file is extended to hold them."""

    inode: int
    position: int
    data: bytes


class Resize(NamedTuple):
    """A file was cut, or extended with zeros."""

    inode: int
    size: int


class Rename(NamedTuple):
    """Names of one directory changed, in one step: of each, the inode that it leads to now, or None.

    A creation or removal changes one name, a rename two.
    """

    inode: int  # of the directory
    names: tuple[tuple[str, int | None], ...]


class Create(NamedTuple):
    """There is a new inode, which no name leads to yet."""

    inode: int
    is_directory: bool


class Sync(NamedTuple):
    """Everything done to this file or directory so far is on the disk."""

    inode: int


class Told(NamedTuple):
    """What the program may rely on, or is about to try, from here on."""

    what: str
    change: Callable[[Promises], None]


Operation = Write | Resize | Rename | Create | Sync | Told
Tree = dict[str, "bytes | Tree"]
"""A directory as it is found: names to contents, and to directories."""
