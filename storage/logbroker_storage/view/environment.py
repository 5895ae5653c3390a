"""The LMDB environment of a data directory: opening it, its transactions, what its errors mean, its values.

A stored value is ``crc32c(key + payload)``, 4 bytes, then the payload: LMDB does not notice flipped
bits, and a wrong log end would be worse than none. A value that fails its check marks the view as
damaged (a file beside it); the next process that opens the directory alone rebuilds it.

Whoever writes takes a lock of ours first (``writing``). LMDB's own is a robust mutex in shared memory, which can lose
a wake-up where processes are killed:

    A unlocks it and wakes B; C is quicker, and takes it without the mark that others wait; B is killed before it
    could set that mark; C unlocks it and wakes nobody. D, who waits too, waits until two others meet there again,
    and they may all be waiting for D.

The kernel keeps the line of those who wait for a ``flock``, and with it nobody ever waits for LMDB's.

The environment runs without any sync. It survives the death of every process (the pages belong to the
kernel), but not of the machine; the boot id in the table ``meta`` tells the two apart.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lmdb

from ..errors import ClosedError, DirectoryInUseError, LogbrokerError, ViewError, WriteFailedError
from ..files import OsFiles
from ..locks import ProcessLock
from .gate import Gate
from .seal import seal, unsealed

logger = logging.getLogger("logbroker.storage")

MAP_BYTES = 16 << 30  # sparse: the file grows only by what is stored
MAX_READERS = 1024
DAMAGED_MARK = "damaged"
LOCK_FILE = "lock.mdb"
WRITING_FILE = "writing.lock"
LOCK_BYTES = (MAX_READERS + 8) * 64  # a cache line for each reader's slot, and some for LMDB's own

META = "meta"
_INT = struct.Struct(">q")

if TYPE_CHECKING:
    Table = lmdb._Database
    Transaction = lmdb.Transaction[bytes]


# What LMDB raises when its pages do not hold together; anything else is the system's (ENOSPC, EIO, …).
_DAMAGE = (
    lmdb.BadTxnError,
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageFullError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)


def delete_prefix(transaction: Transaction, table: Table, prefix: bytes) -> None:
    """Delete everything in *table* whose key begins with *prefix*."""
    with transaction.cursor(db=table) as cursor:
        found = cursor.set_range(prefix)
        while found and cursor.key().startswith(prefix):
            found = cursor.delete()


class Environment:
    """One process's handle on the file. Safe across threads; unusable in a forked child.

    Who reads or writes where a microsecond matters begins bare transactions (``lmdb.begin``) inside the gate, holding
    ``writing`` if it writes, and has LMDB's errors ``translated``; everybody else uses ``read`` and ``write``.
    """

    def __init__(self, path: str, tables: Sequence[str]) -> None:
        """Open the environment at *path* (a directory), creating it and its *tables* when they are not there.

        Raises:
            ViewError: LMDB cannot read what is there.
            DirectoryInUseError: another process has our process id.
            WriteFailedError: the system refused (space, descriptors, memory).
        """
        self.path = path
        self.gate = Gate()  # every transaction begins and ends inside
        self.writing = ProcessLock(OsFiles(), f"{path}/{WRITING_FILE}")  # every one that writes holds it
        self._closed = False
        try:
            self.lmdb = lmdb.open(
                os.fsencode(path),  # lmdb takes only text that is text all through
                map_size=MAP_BYTES,
                max_dbs=len(tables),
                max_readers=MAX_READERS,
                # A forked child that opens the directory must first close the environment it inherited,
                # which frees its parent's reader slots: so no slot may be kept from one read to the next.
                max_spare_txns=0,
                sync=False,
                metasync=False,
                mode=0o644,
                lib_version=0,
            )
        except lmdb.Error as error:
            raise self._not_opened(error) from error
        try:
            self.tables = self._open_tables(tables)
        except lmdb.Error as error:
            refused = self._not_opened(error)
            self.close()
            raise refused from error
        except BaseException:
            self.close()
            raise
        self._meta = self.tables[META]
        self.forget_dead_readers()

    def _open_tables(self, names: Sequence[str]) -> dict[str, Table]:
        with self.writing:
            return {name: self.lmdb.open_db(name.encode()) for name in names}

    def _not_opened(self, error: lmdb.Error) -> LogbrokerError:
        if isinstance(error, lmdb.MemoryError):  # the map is sparse: it is not memory that lacks
            return WriteFailedError(
                f"the view at {self.path} cannot be mapped: {error}; it takes {MAP_BYTES >> 30} GiB of address "
                "space, hardly any of it memory: raise the process's limit (ulimit -v) and try again"
            )
        if isinstance(error, lmdb.LockError):  # of the byte of lock.mdb that stands for a process id
            return DirectoryInUseError(
                f"a process with the same process id ({os.getpid()}) has {self.path} open, in another container (PID "
                "namespace), and LMDB knows processes by their ids: let the containers share one PID namespace "
                "(docker run --pid=container:NAME), or run this under another id"
            )
        # A code that LMDB does not know is the system's, as is this one.
        if type(error) is lmdb.Error or isinstance(error, lmdb.DiskError):
            return self.translated(error)
        return ViewError(f"the view at {self.path} cannot be opened: {error}")

    def close(self) -> None:
        """Close it, once no thread writes any more; who comes later gets a ClosedError.

        LMDB's own ``close`` ends a transaction of another thread without giving back its lock, and then waits for
        that. It would be given back with the transaction's last reference, which an error may hold that somebody
        keeps, as a future does.
        """
        self._closed = True
        self.writing.retire()
        self.lmdb.close()

    def forget_dead_readers(self) -> None:
        """Free the pages that a process pins which was killed in the middle of a read.

        Until somebody does, no page is used again that was freed since, and the file grows with every write.
        """
        self.gate.enter()
        try:
            self.lmdb.reader_check()
        except lmdb.Error as error:
            raise self.translated(error) from error
        finally:
            self.gate.leave()

    # Transactions ---------------------------------------------------------------------------------

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """One write transaction, which no other process can have at the same time. Keep it to microseconds."""
        self.gate.enter()
        try:
            with self.writing, self.lmdb.begin(write=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise self.translated(error) from error
        finally:
            self.gate.leave()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """One read transaction: everything as of one moment. Where a microsecond does not matter."""
        self.gate.enter()
        try:
            with self.lmdb.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise self.translated(error) from error
        finally:
            self.gate.leave()

    def translated(self, error: lmdb.Error) -> LogbrokerError:
        """What an error of LMDB means: no room left, closed meanwhile, pages damaged, or the system refused a write."""
        if isinstance(error, lmdb.MapFullError):
            return ViewError(
                f"the view at {self.path} is full ({MAP_BYTES} bytes); close every process and delete it: "
                "it is rebuilt from the logs"
            )
        if self._closed:
            return ClosedError.in_use()
        if isinstance(error, _DAMAGE):
            return self.damaged(str(error))
        return WriteFailedError(
            f"the view at {self.path} could not be written: {error}; mend the cause (free space, limits) and try again"
        )

    def damaged(self, what: str) -> ViewError:
        """The error for *what* was found; the view is marked, so that the next who comes alone rebuilds it."""
        path = os.path.join(self.path, DAMAGED_MARK)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        except OSError as error:  # a full disk, say; whoever opens it next checks it anyway
            logger.warning("%s cannot be made: %s", path, error)
        return ViewError(
            f"the view at {self.path} is damaged ({what}); close every process that uses the directory and "
            "open it again: the view is rebuilt from the logs"
        )

    # Values ---------------------------------------------------------------------------------------

    def value(self, key: bytes, table: Table) -> bytes | None:
        """What *table* has under *key*; None when nothing is there."""
        self.gate.enter()
        try:
            with self.lmdb.begin() as transaction:
                stored = transaction.get(key, db=table)
        except lmdb.Error as error:
            raise self.translated(error) from error
        finally:
            self.gate.leave()
        return None if stored is None else self.unseal(key, stored)

    def value_in(self, transaction: Transaction, key: bytes, table: Table) -> bytes | None:
        """The same, as *transaction* sees it."""
        stored = transaction.get(key, db=table)
        return None if stored is None else self.unseal(key, stored)

    def items(
        self, prefix: bytes, table: Table, *, begin: bytes | None = None, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """The items whose keys begin with *prefix*, ascending; from *begin* on, and *limit* of them at most."""
        found: list[tuple[bytes, bytes]] = []
        self.gate.enter()
        try:
            with self.lmdb.begin(db=table) as transaction, transaction.cursor() as cursor:
                if not cursor.set_range(prefix if begin is None else begin):
                    return found
                for key, stored in cursor:
                    if not key.startswith(prefix) or len(found) == limit:
                        break
                    found.append((key, stored))
        except lmdb.Error as error:
            raise self.translated(error) from error
        finally:
            self.gate.leave()
        return [(key, self.unseal(key, stored)) for key, stored in found]

    def unseal(self, key: bytes, stored: bytes) -> bytes:
        """The payload in *stored*.

        Raises:
            ViewError: it fails its checksum.
        """
        payload = unsealed(key, stored)
        if payload is None:
            raise self.damaged(f"the value of key {key!r} fails its checksum")
        return payload

    def entries(self) -> int:
        """How many values the view holds."""
        self.gate.enter()
        try:
            with self.lmdb.begin() as transaction:
                return sum(transaction.stat(table)["entries"] for table in self.tables.values())
        except lmdb.Error as error:
            raise self.translated(error) from error
        finally:
            self.gate.leave()

    def check(self) -> None:
        """Read every value once.

        Raises:
            ViewError: one of them fails its checksum or is missing, or LMDB cannot walk its own tree.
        """
        found = sum(len(self.items(b"", table)) for table in self.tables.values())
        if found != self.entries():
            raise self.damaged(f"{found} values were found where {self.entries()} are counted")

    # Meta -----------------------------------------------------------------------------------------

    def meta_bytes(self, name: bytes) -> bytes | None:
        return self.value(name, self._meta)

    def meta_int(self, name: bytes) -> int:
        """A counter; 0 when it was never set."""
        payload = self.value(name, self._meta)
        return 0 if payload is None else int(_INT.unpack(payload)[0])

    def meta_int_in(self, transaction: Transaction, name: bytes) -> int:
        """A counter as *transaction* sees it."""
        payload = self.value_in(transaction, name, self._meta)
        return 0 if payload is None else int(_INT.unpack(payload)[0])

    def put_meta_bytes(self, transaction: Transaction, name: bytes, payload: bytes) -> None:
        transaction.put(name, seal(name, payload), db=self._meta)

    def put_meta_int(self, transaction: Transaction, name: bytes, value: int) -> None:
        self.put_meta_bytes(transaction, name, _INT.pack(value))

    def delete_meta(self, transaction: Transaction, name: bytes) -> None:
        transaction.delete(name, db=self._meta)
