"""Flips of the view's file while nobody has it open: noticed, or without meaning, and never the death of a process.

Each case is opened in a child process, because LMDB dies of pages that do not hold together. What is asked of the
directory has to be what it was, and it has to take writes: to the view, to the journal and to a log.
"""

from __future__ import annotations

import os
import random
import signal
import traceback

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.events import OffsetEvent
from logbroker_storage.files import OsFiles
from logbroker_storage.layout import DataLayout
from logbroker_storage.record_batch import encode_values
from logbroker_storage.startup import damage_of_view
from logbroker_storage.view.pages import find_damage
from logbroker_storage.view.tables import TABLES

from .segments import mapped
from .small_files import Lookups
from .store import GROUP, NOW_MS, OTHER, TOPIC, Store

PAGE_BYTES = 4096
CASES_A_CHILD = 250


def a_damaged_view(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One bit turned over, two times in three where pages say what they are; now and then more."""
    kind = rng.random()
    position = rng.randrange(len(content))
    page = position // PAGE_BYTES * PAGE_BYTES
    if kind < 0.9:
        if kind < 0.6:
            position = page + rng.randrange(64)
        bit = rng.randrange(8)
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        return f"bit {bit} of byte {position}", bytes(flipped)
    if kind < 0.94:
        other = rng.randrange(0, len(content), PAGE_BYTES)
        changed = content[:page] + content[other : other + PAGE_BYTES] + content[page + PAGE_BYTES :]
        return f"the page at {other} also at {page}", changed
    if kind < 0.97:
        scrambled = rng.randbytes(PAGE_BYTES)
        return f"page at {page} scrambled: {scrambled[:8].hex()}", (
            content[:page] + scrambled + content[page + PAGE_BYTES :]
        )
    return f"cut to {position}", content[:position]


class ViewDamage:
    """Damaged views of one directory, tried one by one."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self.store = store
        self.view = store.data / "view" / "data.mdb"
        self.content = store.sound_files["view/data.mdb"]
        self.lookups = Lookups(store, rng)
        self._rng = rng

    def run(self, cases: int) -> int:
        """Open and use so many."""
        made = [a_damaged_view(self.content, self._rng) for _ in range(cases)]
        for first in range(0, cases, CASES_A_CHILD):
            self._run_child(made[first : first + CASES_A_CHILD])
        self.store.restore()
        return cases

    def noticed(self, cases: int) -> int:
        """So many single bits, of which the first process to come misses none."""
        noted = self.store.sound_files["view.checksum"]
        files, layout = OsFiles(), DataLayout(str(self.store.data))
        assert damage_of_view(files, layout, noted) is None
        with mapped(self.view) as view:
            for _ in range(cases):
                bit = self._rng.randrange(len(self.content) * 8)
                view[bit // 8] ^= 1 << bit % 8
                assert damage_of_view(files, layout, noted) is not None, (
                    f"bit {bit} of the view is not noticed"
                )
                view[bit // 8] ^= 1 << bit % 8
        return cases

    def walked(self, cases: int) -> int:
        """So many damaged views, over which the walk comes to an end without an error of its own.

        Those that it finds sound are opened: a part of them, as many as one child takes.
        """
        passed: list[tuple[str, bytes]] = []
        for _ in range(cases):
            what, damaged = a_damaged_view(self.content, self._rng)
            try:
                damage = find_damage(damaged, TABLES)
            except Exception as error:
                raise AssertionError(f"{what}: the walk failed: {error!r}") from error
            if damage is None and damaged != self.content:
                passed.append((what, damaged))
        assert len(passed) < cases, "the walk finds something"
        self._run_child(self._rng.sample(passed, min(len(passed), CASES_A_CHILD)))
        self.store.restore()
        return cases

    def _run_child(self, cases: list[tuple[str, bytes]]) -> None:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            code = 1
            try:
                for what, damaged in cases:
                    os.write(writing, f"{what}\n".encode())
                    self._try(what, damaged)
                code = 0
            except BaseException:
                os.write(writing, traceback.format_exc().encode())
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading, errors="replace") as lines:
            told = lines.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            raise AssertionError(
                f"the process died of {name} with this damage of the view: {told.splitlines()[-1]}"
            )
        assert status == 0, told[-4000:]

    def _try(self, what: str, damaged: bytes) -> None:
        store = self.store
        store.restore()
        self.view.write_bytes(damaged)
        self.lookups.check(what, then=use)


def use(directory: DataDirectory) -> None:
    """Write a little of everything that goes through the view."""
    directory.view.volatile.update(b"new", lambda _: b"v" * 5000)
    directory.view.volatile.update(b"new", lambda _: None)
    directory.journal.record([OffsetEvent(GROUP, OTHER, 1, 1, "", NOW_MS)])
    log = directory.log(OTHER, 1)
    end = log.offsets().log_end_offset
    assert log.append(encode_values([b"more"], [(0, NOW_MS)])).base_offset == end
    log.sync()
    assert directory.log(TOPIC, 0).state() is not None
