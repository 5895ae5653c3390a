"""What is measured of a soaking process and of the directory, from outside, by the kernel's own accounts.

of a process   memory          anonymous pages (heap, stacks): what is nobody else's; /proc/PID/smaps_rollup
               descriptors     entries of /proc/PID/fd
               threads         entries of /proc/PID/task
               watches         of inotify; lines of /proc/PID/fdinfo/*
of the view    readers         reader slots of LMDB in use; a read takes microseconds, so nearly all are left over
               pages           that its trees hold; free ones are not counted
               file_bytes      data.mdb: it never shrinks, so it must stop growing
               rows <table>    entries
of the files   log_bytes       all files of logs/
               journal_bytes   of them the journal's
               files <folder>  how many there are in logs/, view/locks/, view/processes/ and view/signals/
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import lmdb

Gauges = dict[str, float]

PAGE_BYTES = 4096
TABLES = 64  # more than the view has
MAP_BYTES = 16 << 30  # as the view's own
AREAS = ("logs", "view/locks", "view/processes", "view/signals")


def process_gauges(pid: int) -> Gauges | None:
    """The gauges of a process; None when it has ended."""
    proc = f"/proc/{pid}"
    try:
        with open(f"{proc}/smaps_rollup") as file:
            memory = sum(int(line.split()[1]) << 10 for line in file if line.startswith("Anonymous:"))
        return {
            "memory": memory,
            "descriptors": len(os.listdir(f"{proc}/fd")),
            "threads": len(os.listdir(f"{proc}/task")),
            "watches": sum(_watches(f"{proc}/fdinfo/{fd}") for fd in os.listdir(f"{proc}/fdinfo")),
        }
    except (FileNotFoundError, ProcessLookupError):
        return None


def _watches(path: str) -> int:
    try:
        with open(path) as file:
            return sum(line.startswith("inotify ") for line in file)
    except FileNotFoundError:
        return 0  # closed meanwhile


class ViewGauges:
    """Reads the view as one more process: by LMDB itself, without writing."""

    def __init__(self, view: str) -> None:
        self._path = f"{view}/data.mdb"
        self._env = lmdb.open(
            view,
            readonly=True,
            create=False,
            map_size=MAP_BYTES,
            max_dbs=TABLES,
            max_spare_txns=0,
            max_readers=1024,
            lib_version=0,
        )
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            names = list(cursor.iternext(keys=True, values=False))
        self._tables = {name.decode(): self._env.open_db(name, create=False) for name in names}

    def read(self) -> Gauges:
        with self._env.begin() as transaction:
            stats = {name: transaction.stat(table) for name, table in self._tables.items()}
        used = sum(
            stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats.values()
        )
        rows = {f"rows {name}": float(stat["entries"]) for name, stat in stats.items()}
        # The first line is a heading; without readers there is a sentence instead.
        readers = [
            line
            for line in self._env.readers().splitlines()
            if line.split()[:1] and line.split()[0].isdigit()
        ]
        return {
            "readers": len(readers),
            "pages": used,
            "file_bytes": os.stat(self._path).st_blocks * 512,
            **rows,
        }

    def close(self) -> None:
        self._env.close()


@contextmanager
def view_gauges(view: str) -> Iterator[ViewGauges]:
    gauges = ViewGauges(view)
    try:
        yield gauges
    finally:
        gauges.close()


def directory_gauges(data: str) -> Gauges:
    """The gauges of the files; some come and go while they are counted."""
    found: Gauges = {"log_bytes": 0, "journal_bytes": 0}
    for area in AREAS:
        paths = list(_files(f"{data}/{area}"))
        found[f"files {area}"] = len(paths)
        if area == "logs":
            found["log_bytes"] = sum(map(_size, paths))
            found["journal_bytes"] = sum(_size(path) for path in paths if "/__journal-0/" in path)
    return found


def _files(folder: str) -> Iterator[str]:
    for path, _, names in os.walk(folder):
        for name in names:
            yield f"{path}/{name}"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0  # removed meanwhile
