"""What a process leaves that died while it put a rewritten segment in place, and those who clear up behind it."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import pytest

from logbroker_storage.cleaner import segment_batches
from logbroker_storage.errors import WriteFailedError
from logbroker_storage.recovery import sweep_leftovers
from logbroker_storage.segment_replacement import finish_replacements, replace_segments, write_replacement
from logbroker_storage.testing import FaultyFiles, MemoryFiles, ProcessKilled, Workbench

OLD, REPLACED, NEW = f"{0:020d}.log", f"{7:020d}.log", f"{0:020d}.log.cleaned"
INDEX, NEW_INDEX = f"{0:020d}.index", f"{0:020d}.index.cleaned"
LIST = f"{0:020d}.replaces"


def folder(*, is_in_place: bool) -> MemoryFiles:
    """A partition's folder, in which segments 0 and 7 are to become one; the new log is in place, or not yet."""
    files = MemoryFiles()
    files.mkdir("/t-0")
    for name in (OLD, REPLACED, INDEX):
        files.replace_file(f"/t-0/{name}", b"old")
    for name in (NEW, NEW_INDEX):
        files.replace_file(f"/t-0/{name}", b"new")
    files.replace_file(f"/t-0/{LIST}", b"7\n")
    if is_in_place:
        files.rename(f"/t-0/{NEW}", f"/t-0/{OLD}")
    return files


def contents(files: MemoryFiles) -> dict[str, bytes]:
    return {name: files.read_file(f"/t-0/{name}") for name in files.listdir("/t-0")}


@pytest.mark.parametrize("is_in_place", [False, True])
def test_whoever_clears_up_may_die_at_it_too(is_in_place: bool) -> None:
    whole = {OLD: b"new", INDEX: b"new"} if is_in_place else {OLD: b"old", REPLACED: b"old", INDEX: b"old"}
    for operation in itertools.count(1):
        files = folder(is_in_place=is_in_place)
        dying = FaultyFiles(files).kill(at=operation)
        died = True
        with contextlib.suppress(ProcessKilled):
            finish_replacements(dying, "/t-0")
            died = False
        finish_replacements(files, "/t-0")
        assert contents(files) == whole, f"died at operation {operation}"
        if not died:
            return


@pytest.mark.parametrize("is_in_place", [False, True])
def test_nothing_goes_before_it_is_on_the_disk_why(is_in_place: bool) -> None:
    """Changes of names may reach the disk in any order: a removal never lies beside what makes it right."""
    files = folder(is_in_place=is_in_place)
    unsynced: list[str] = []

    class Watched(FaultyFiles):
        def unlink(self, path: str) -> None:
            unsynced.append(path.rpartition("/")[2])
            super().unlink(path)

        def rename(self, source: str, target: str) -> None:
            unsynced.append(target.rpartition("/")[2])
            super().rename(source, target)

        def fsync_directory(self, path: str) -> None:
            steps.append(frozenset(unsynced))
            unsynced.clear()
            super().fsync_directory(path)

    steps: list[frozenset[str]] = []
    finish_replacements(Watched(files), "/t-0")
    steps.append(frozenset(unsynced))
    if is_in_place:
        # The new log's name was perhaps not synced by who died.
        assert steps == [frozenset(), {INDEX, REPLACED}, {LIST}, frozenset()]
    else:
        assert steps == [{LIST}, {NEW, NEW_INDEX}]


def test_what_was_swept_while_it_was_made_replaces_nothing(tmp_path: Path) -> None:
    """Whoever verifies a partition whose sync failed sweeps it; a compaction may be at work there."""
    bench = Workbench(str(tmp_path / "data"))
    for value in (b"first", b"second"):
        bench.put(value)
        bench.log.roll_now()
    write_replacement(bench.log, 0, [batch.data for batch in segment_batches(bench.log, 0)])
    sweep_leftovers(bench.log.files, bench.log.directory)
    with pytest.raises(WriteFailedError, match="the next cleaning makes it again"):
        replace_segments(bench.log, [0, 1])
    sweep_leftovers(bench.log.files, bench.log.directory)
    assert bench.values() == [b"first", b"second"]
    bench.close()


def test_the_next_open_takes_away_what_a_killed_compaction_left(tmp_path: Path) -> None:
    bench = Workbench(str(tmp_path / "data"))
    for value in (b"first", b"second"):
        bench.put(value)
        bench.log.roll_now()
    write_replacement(bench.log, 0, [batch.data for batch in segment_batches(bench.log, 0)])
    bench.crash()  # the view is believed
    bench.open()
    assert not [name for name in os.listdir(bench.folder) if name.endswith(".cleaned")]
    assert bench.values() == [b"first", b"second"]
    bench.close()
