"""A file system in memory that knows what is durable, so that a power cut can be played.

Each file keeps its content, the content at its last sync, and the writes since; each directory keeps its
names, those at its last sync, and the changes since. A power cut may keep or lose any of what was not
synced:

    what             may survive                                      model
    synced data      always                                           the content at the last sync
    writes since     any subset, each possibly in part (whole         chosen at random, sector by sector
                     sectors), in any order
    name changes     any subset, but none without those to the        chosen at random
    since            same names before it

The model is stricter than ext4, which journals name changes in order, and where syncing a new file also syncs its
name: code that is right here is right on every POSIX file system.
"""

from __future__ import annotations

import errno
import itertools
import os
import posixpath
import random
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..files import Buffer, Files, read_file, replace_file

SECTOR_BYTES = 512


class _Write(NamedTuple):
    """Bytes written at a position, or (with no data) the file cut or extended to it."""

    position: int
    data: bytes | None


class _File:
    """An inode: it lives as long as a name or a descriptor leads to it."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.synced = b""
        self.unsynced: list[_Write] = []
        self.sync_count = 0

    def write(self, position: int, data: bytes) -> None:
        _apply(self.content, _Write(position, data))
        self.unsynced.append(_Write(position, data))

    def truncate(self, size: int) -> None:
        _apply(self.content, _Write(size, None))
        self.unsynced.append(_Write(size, None))

    def sync(self) -> None:
        self.synced = bytes(self.content)
        self.unsynced.clear()
        self.sync_count += 1

    def after_power_cut(self, survivors: random.Random | None) -> _File:
        left = _File()
        left.content = bytearray(self.synced)
        if survivors is not None:
            for write in _survivors(self.unsynced, survivors):
                _apply(left.content, write)
        left.synced = bytes(left.content)
        return left


class _Directory:
    def __init__(self) -> None:
        self.names: dict[str, _File | _Directory] = {}
        self.synced: dict[str, _File | _Directory] = {}
        self.unsynced: list[_Names] = []  # the changes since
        self.sync_count = 0

    def change(self, names: _Names) -> None:
        """Let *names* lead to what they say; they change together or not at all."""
        _rename(self.names, names)
        self.unsynced.append(names)

    def sync(self) -> None:
        self.synced = dict(self.names)
        self.unsynced.clear()
        self.sync_count += 1

    def after_power_cut(self, survivors: random.Random | None, files: dict[int, _File]) -> _Directory:
        names = dict(self.synced)
        if survivors is not None:
            for change in _surviving_changes(self.unsynced, survivors):
                _rename(names, change)
        left = _Directory()
        for name, node in names.items():
            if isinstance(node, _Directory):
                left.names[name] = node.after_power_cut(survivors, files)
            else:
                # A file may have two names at that moment (a rename between directories): decide once.
                left.names[name] = files.setdefault(id(node), node.after_power_cut(survivors))
        left.synced = dict(left.names)
        return left


_Names = dict[str, _File | _Directory | None]
"""Names in a directory, and what each leads to after a change; None: it is gone."""


class _Descriptor(NamedTuple):
    file: _File
    readonly: bool


class MemoryFiles:
    """``Files`` in memory. Paths are absolute; the root directory exists. Thread-safe."""

    def __init__(self) -> None:
        self._root = _Directory()
        self._descriptors: dict[int, _Descriptor] = {}
        self._numbers = itertools.count(1000)
        self._lock = threading.RLock()  # guards everything above

    # What a test asks ---------------------------------------------------------------------------------

    def after_power_cut(self, survivors: random.Random | None = None) -> MemoryFiles:
        """The file system that is found after a power cut now.

        Without *survivors* nothing that was not synced is left; with it, a random part of that is.
        """
        with self._lock:
            left = MemoryFiles()
            left._root = self._root.after_power_cut(survivors, {})
            return left

    def sync_count(self, path: str) -> int:
        """How often the file or directory *path* was synced."""
        with self._lock:
            return self._node(path).sync_count

    def unsynced_paths(self) -> list[str]:
        """The files and directories with changes that a power cut could take back, sorted."""
        with self._lock:
            return sorted(path for path, node in _walk("/", self._root) if node.unsynced)

    def open_descriptors(self) -> int:
        """How many descriptors are open: none at the end of a test that closes what it opens."""
        return len(self._descriptors)

    def export(self, path: str, files: Files, target: str) -> None:
        """Copy the tree under *path* into the existing directory *target* of another file system."""
        with self._lock:
            for name, node in self._directory(path).names.items():
                if isinstance(node, _Directory):
                    files.mkdir(f"{target}/{name}")
                    self.export(posixpath.join(path, name), files, f"{target}/{name}")
                else:
                    _export_file(node, files, f"{target}/{name}")

    # Files --------------------------------------------------------------------------------------------

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, readonly: bool = False
    ) -> int:
        with self._lock:
            directory, name = self._parent(path)
            node = directory.names.get(name)
            if isinstance(node, _Directory):
                raise _error(errno.EISDIR, path)
            if node is not None and create and exclusive:
                raise _error(errno.EEXIST, path)
            if node is None:
                if not create:
                    raise _error(errno.ENOENT, path)
                node = _File()
                directory.change({name: node})
            fd = next(self._numbers)
            self._descriptors[fd] = _Descriptor(node, readonly)
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self._open_file(fd)
            del self._descriptors[fd]

    def pread(self, fd: int, size: int, position: int) -> bytes:
        with self._lock:
            return bytes(self._open_file(fd).content[position : position + size])

    def pwrite(self, fd: int, data: Buffer, position: int) -> None:
        with self._lock:
            self._writable(fd).write(position, bytes(data))

    def pwritev(self, fd: int, buffers: Sequence[Buffer], position: int) -> None:
        self.pwrite(fd, b"".join(buffers), position)

    def write_zeros(self, fd: int, position: int, size: int) -> None:
        self.pwrite(fd, bytes(size), position)

    def fsync(self, fd: int) -> None:
        with self._lock:
            self._open_file(fd).sync()

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        with self._lock:
            self._writable(fd).truncate(size)

    def allocate(self, fd: int, position: int, size: int) -> None:
        with self._lock:
            file = self._writable(fd)
            if len(file.content) < position + size:
                file.truncate(position + size)

    def size(self, fd: int) -> int:
        with self._lock:
            return len(self._open_file(fd).content)

    def fsync_directory(self, path: str) -> None:
        with self._lock:
            self._directory(path).sync()

    def rename(self, source: str, target: str) -> None:
        with self._lock:
            old_directory, old_name = self._parent(source)
            new_directory, new_name = self._parent(target)
            if old_name not in old_directory.names:
                raise _error(errno.ENOENT, source)
            if isinstance(new_directory.names.get(new_name), _Directory):
                raise _error(errno.EISDIR, target)
            node = old_directory.names[old_name]
            if old_directory is new_directory:
                new_directory.change({old_name: None, new_name: node})
            else:
                new_directory.change({new_name: node})
                old_directory.change({old_name: None})

    def unlink(self, path: str) -> None:
        with self._lock:
            directory, name = self._parent(path)
            if isinstance(self._node(path), _Directory):
                raise _error(errno.EISDIR, path)
            directory.change({name: None})

    def rmdir(self, path: str) -> None:
        with self._lock:
            if self._directory(path).names:
                raise _error(errno.ENOTEMPTY, path)
            directory, name = self._parent(path)
            directory.change({name: None})

    def mkdir(self, path: str) -> None:
        with self._lock:
            directory, name = self._parent(path)
            if name in directory.names or not name:
                raise _error(errno.EEXIST, path)
            directory.change({name: _Directory()})

    def listdir(self, path: str) -> list[str]:
        with self._lock:
            return sorted(self._directory(path).names)

    def exists(self, path: str) -> bool:
        try:
            self._node(path)
        except OSError:
            return False
        return True

    def read_file(self, path: str) -> bytes:
        return read_file(self, path)

    def replace_file(self, path: str, data: Buffer) -> None:
        replace_file(self, path, data)

    def start_writeback(self, fd: int, position: int, size: int) -> None:
        pass

    def is_cached(self, fd: int, position: int, size: int) -> bool:  # noqa: ARG002
        return True

    def drop_cache(self, fd: int) -> None:
        self._open_file(fd)

    # Looking up ---------------------------------------------------------------------------------------

    def _node(self, path: str) -> _File | _Directory:
        node: _File | _Directory = self._root
        for name in _names(path):
            if not isinstance(node, _Directory):
                raise _error(errno.ENOTDIR, path)
            if name not in node.names:
                raise _error(errno.ENOENT, path)
            node = node.names[name]
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._node(path)
        if not isinstance(node, _Directory):
            raise _error(errno.ENOTDIR, path)
        return node

    def _parent(self, path: str) -> tuple[_Directory, str]:
        parent, name = posixpath.split("/" + "/".join(_names(path)))
        return self._directory(parent), name

    def _open_file(self, fd: int) -> _File:
        if fd not in self._descriptors:
            raise _error(errno.EBADF, str(fd))
        return self._descriptors[fd].file

    def _writable(self, fd: int) -> _File:
        file = self._open_file(fd)
        if self._descriptors[fd].readonly:
            raise _error(errno.EBADF, str(fd))
        return file


def _names(path: str) -> list[str]:
    if not path.startswith("/"):
        raise _error(errno.ENOENT, path)
    return [name for name in posixpath.normpath(path).split("/") if name]


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _walk(path: str, directory: _Directory) -> Iterator[tuple[str, _File | _Directory]]:
    yield path, directory
    for name, node in directory.names.items():
        below = posixpath.join(path, name)
        if isinstance(node, _Directory):
            yield from _walk(below, node)
        else:
            yield below, node


def _apply(content: bytearray, write: _Write) -> None:
    if len(content) < write.position:
        content.extend(bytes(write.position - len(content)))
    if write.data is None:
        del content[write.position :]
    else:
        content[write.position : write.position + len(write.data)] = write.data


def _rename(names: dict[str, _File | _Directory], change: _Names) -> None:
    for name, node in change.items():
        if node is None:
            del names[name]
        else:
            names[name] = node


def _surviving_changes(changes: Sequence[_Names], survivors: random.Random) -> list[_Names]:
    """A random subset of *changes* to a directory, which none is in without those before it that it goes by."""
    kept: list[_Names] = []
    lost: set[str] = set()
    likely = survivors.choice((0.1, 0.5, 0.9))
    for change in changes:
        if lost.isdisjoint(change) and survivors.random() < likely:
            kept.append(change)
        else:
            lost.update(change)
    return kept


def _survivors(writes: Sequence[_Write], survivors: random.Random) -> list[_Write]:
    """A random subset of *writes*, in a random order, some of them cut to whole sectors."""
    kept = [write for write in writes if survivors.random() < 0.5]
    survivors.shuffle(kept)
    return [piece for write in kept for piece in _sectors(write, survivors)]


def _sectors(write: _Write, survivors: random.Random) -> list[_Write]:
    if write.data is None or survivors.random() < 0.5:
        return [write]
    # The length may reach the disk before the data does: sectors that did not read as zeros.
    pieces = [_Write(write.position + len(write.data), b"")]
    start = write.position
    end = write.position + len(write.data)
    while start < end:
        stop = min((start // SECTOR_BYTES + 1) * SECTOR_BYTES, end)
        if survivors.random() < 0.5:
            pieces.append(_Write(start, write.data[start - write.position : stop - write.position]))
        start = stop
    return pieces


def _export_file(file: _File, files: Files, target: str) -> None:
    fd = files.open(target, create=True, exclusive=True)
    try:
        files.pwrite(fd, bytes(file.content), 0)
    finally:
        files.close(fd)
