"""A file system in memory that writes down every operation, with the view of a data directory on a real one.

A view is LMDB's, whose memory map needs a real file, and its locks need real descriptors. Everything else
of a data directory is kept here, so that a state of the disk is made, opened and thrown away in
milliseconds: only ``view/`` and the files that are locked, which promise nothing, are real ones.

``<root>`` is the parent of the data directory ``<root>/data``: so it is known, too, whether the data
directory's own name is on the disk.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import threading
from collections.abc import Sequence

from logbroker_storage.files import Buffer, OsFiles, read_file, replace_file

from .operations import ROOT, Create, Operation, Rename, Resize, Sync, Told, Tree, Write

FIRST_DESCRIPTOR = 1 << 20  # above those of the system


class _File:
    def __init__(self, inode: int, content: bytes | bytearray) -> None:
        self.inode = inode
        self.content = content

    def writable(self) -> bytearray:
        """The content, which is shared with the state that it comes from until it is changed."""
        if not isinstance(self.content, bytearray):
            self.content = bytearray(self.content)
        return self.content


class _Directory:
    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.names: dict[str, _File | _Directory] = {}


def _digest(directory: _Directory) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for name, node in sorted(directory.names.items()):
        if isinstance(node, _Directory):
            found.update(b"%s/%s" % (name.encode(), _digest(node)))
        else:
            found.update(b"%s\0%d\0" % (name.encode(), len(node.content)))
            found.update(node.content)
    return found.digest()


class Disk:
    """``Files``: those of one data directory. Thread-safe."""

    def __init__(self, root: str, tree: Tree | None = None) -> None:
        """*root* is a real directory; *tree* is what is on the disk below it, all of it synced."""
        self.path = f"{root}/data"
        self.operations: list[Operation] = []
        self._prefix = len(root) + 1
        self._view = f"{self.path}/view"
        self._locks = (f"{self.path}/lock", f"{self.path}/logs/.lock")
        self._os = OsFiles()
        self._inodes = itertools.count(ROOT)
        self._root = _Directory(next(self._inodes))
        self._directories: dict[str, _Directory] = {}  # by path, those that were looked up
        self._descriptors: dict[int, _File] = {}
        self._numbers = itertools.count(FIRST_DESCRIPTOR)
        self._lock = (
            threading.RLock()
        )  # guards everything above; held across a change and its being written down
        os.makedirs(f"{self.path}/logs", exist_ok=True)
        if tree:
            self._fill(self._root, tree)

    def tell(self, told: Told) -> None:
        """Write down a promise."""
        with self._lock:
            self.operations.append(told)

    def _fill(self, directory: _Directory, tree: Tree) -> None:
        for name, content in tree.items():
            if isinstance(content, dict):
                below = directory.names[name] = _Directory(next(self._inodes))
                self._fill(below, content)
            else:
                directory.names[name] = _File(next(self._inodes), content)

    def inodes(self) -> dict[int, bytes | dict[str, int]]:
        """Every inode with its content, or the names in it: what the operations begin with."""
        found: dict[int, bytes | dict[str, int]] = {}

        def note(directory: _Directory) -> None:
            found[directory.inode] = {name: node.inode for name, node in directory.names.items()}
            for node in directory.names.values():
                if isinstance(node, _Directory):
                    note(node)
                else:
                    found[node.inode] = bytes(node.content)

        note(self._root)
        return found

    def digest(self) -> bytes:
        """Of every name and content."""
        return _digest(self._root)

    # Files --------------------------------------------------------------------------------------------

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, readonly: bool = False
    ) -> int:
        if self._is_real(path):
            return self._os.open(path, create=create, exclusive=exclusive, readonly=readonly)
        with self._lock:
            directory, name = self._parent(path)
            node = directory.names.get(name)
            if node is None:
                if not create:
                    raise _error(errno.ENOENT, path)
                node = _File(next(self._inodes), b"")
                self.operations.append(Create(node.inode, is_directory=False))
                self._put(directory, {name: node})
            elif isinstance(node, _Directory):
                raise _error(errno.EISDIR, path)
            elif create and exclusive:
                raise _error(errno.EEXIST, path)
            fd = next(self._numbers)
            self._descriptors[fd] = node
            return fd

    def close(self, fd: int) -> None:
        if fd < FIRST_DESCRIPTOR:
            self._os.close(fd)
        elif self._descriptors.pop(fd, None) is None:
            raise _error(errno.EBADF, str(fd))

    def pread(self, fd: int, size: int, position: int) -> bytes:
        if fd < FIRST_DESCRIPTOR:
            return self._os.pread(fd, size, position)
        return bytes(self._file(fd).content[position : position + size])

    def pwrite(self, fd: int, data: Buffer, position: int) -> None:
        if fd < FIRST_DESCRIPTOR:
            self._os.pwrite(fd, data, position)
            return
        with self._lock:
            file = self._file(fd)
            write = Write(file.inode, position, bytes(data))
            apply(file.writable(), write)
            self.operations.append(write)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], position: int) -> None:
        self.pwrite(fd, b"".join(buffers), position)

    def write_zeros(self, fd: int, position: int, size: int) -> None:
        if fd >= FIRST_DESCRIPTOR and len(self._file(fd).content) <= position:
            self.truncate(fd, position + size)  # what a power cut leaves of them are zeros, however many
        else:
            self.pwrite(fd, bytes(size), position)

    def fsync(self, fd: int) -> None:
        if fd >= FIRST_DESCRIPTOR:
            with self._lock:
                self.operations.append(Sync(self._file(fd).inode))

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        if fd < FIRST_DESCRIPTOR:
            self._os.truncate(fd, size)
            return
        with self._lock:
            file = self._file(fd)
            if len(file.content) != size:
                self._resize(file, size)

    def allocate(self, fd: int, position: int, size: int) -> None:
        if fd < FIRST_DESCRIPTOR:
            self._os.allocate(fd, position, size)
            return
        with self._lock:
            file = self._file(fd)
            if len(file.content) < position + size:
                self._resize(file, position + size)

    def _resize(self, file: _File, size: int) -> None:
        resize = Resize(file.inode, size)
        apply(file.writable(), resize)
        self.operations.append(resize)

    def size(self, fd: int) -> int:
        return self._os.size(fd) if fd < FIRST_DESCRIPTOR else len(self._file(fd).content)

    def fsync_directory(self, path: str) -> None:
        if not self._is_real(path):
            with self._lock:
                self.operations.append(Sync(self._directory(path).inode))

    def rename(self, source: str, target: str) -> None:
        if self._is_real(source):
            self._os.rename(source, target)
            return
        with self._lock:
            directory, old = self._parent(source)
            new_directory, new = self._parent(target)
            if new_directory is not directory:
                raise _error(errno.EXDEV, target)  # a change of two directories would need a model of its own
            node = directory.names.get(old)
            if node is None:
                raise _error(errno.ENOENT, source)
            if isinstance(directory.names.get(new), _Directory):
                raise _error(errno.EISDIR, target)
            self._put(directory, {old: None, new: node})

    def unlink(self, path: str) -> None:
        if self._is_real(path):
            self._os.unlink(path)
            return
        with self._lock:
            directory, name = self._parent(path)
            if isinstance(self._node(path), _Directory):
                raise _error(errno.EISDIR, path)
            self._put(directory, {name: None})

    def rmdir(self, path: str) -> None:
        if self._is_real(path):
            self._os.rmdir(path)
            return
        with self._lock:
            if self._directory(path).names:
                raise _error(errno.ENOTEMPTY, path)
            directory, name = self._parent(path)
            self._put(directory, {name: None})

    def mkdir(self, path: str) -> None:
        if self._is_real(path):
            self._os.mkdir(path)
            return
        with self._lock:
            directory, name = self._parent(path)
            if name in directory.names:
                raise _error(errno.EEXIST, path)
            node = _Directory(next(self._inodes))
            self.operations.append(Create(node.inode, is_directory=True))
            self._put(directory, {name: node})

    def _put(self, directory: _Directory, changes: dict[str, _File | _Directory | None]) -> None:
        if any(isinstance(directory.names.get(name), _Directory) for name in changes):
            self._directories.clear()
        for name, node in changes.items():
            if node is None:
                del directory.names[name]
            else:
                directory.names[name] = node
        names = tuple((name, None if node is None else node.inode) for name, node in changes.items())
        self.operations.append(Rename(directory.inode, names))

    def listdir(self, path: str) -> list[str]:
        if self._is_real(path):
            return self._os.listdir(path)
        with self._lock:
            return sorted(self._directory(path).names)

    def exists(self, path: str) -> bool:
        if self._is_real(path):
            return self._os.exists(path)
        try:
            directory, name = self._parent(path)
        except OSError:
            return False
        return name in directory.names

    def read_file(self, path: str) -> bytes:
        if self._is_real(path):
            return self._os.read_file(path)
        return read_file(self, path)

    def replace_file(self, path: str, data: Buffer) -> None:
        replace_file(self, path, data)

    def start_writeback(self, fd: int, position: int, size: int) -> None:
        pass  # a power cut may leave any of what is not synced

    def is_cached(self, fd: int, position: int, size: int) -> bool:
        return False  # so that nobody reads at once what would come from the disk

    def drop_cache(self, fd: int) -> None:
        pass

    # Looking up ---------------------------------------------------------------------------------------

    def _is_real(self, path: str) -> bool:
        return path.startswith(self._view) or path in self._locks

    def _node(self, path: str) -> _File | _Directory:
        node: _File | _Directory = self._root
        for name in path[self._prefix :].split("/"):
            if not name:
                continue
            if not isinstance(node, _Directory):
                raise _error(errno.ENOTDIR, path)
            found = node.names.get(name)
            if found is None:
                raise _error(errno.ENOENT, path)
            node = found
        return node

    def _directory(self, path: str) -> _Directory:
        known = self._directories.get(path)
        if known is not None:
            return known
        node = self._node(path)
        if not isinstance(node, _Directory):
            raise _error(errno.ENOTDIR, path)
        self._directories[path] = node
        return node

    def _parent(self, path: str) -> tuple[_Directory, str]:
        parent, _, name = path.rpartition("/")
        return self._directory(parent), name

    def _file(self, fd: int) -> _File:
        try:
            return self._descriptors[fd]
        except KeyError:
            raise _error(errno.EBADF, str(fd)) from None


def apply(content: bytearray, change: Write | Resize) -> None:
    """Do to *content* what *change* did to the file."""
    if isinstance(change, Resize):
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
        return
    if len(content) < change.position:
        content.extend(bytes(change.position - len(content)))
    content[change.position : change.position + len(change.data)] = change.data


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
