"""What a process leaves that died while it put a rewritten segment in place, and those who clear up behind it."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import pytest

from logbroker_storage.cleaner import segment_batches
from logbroker_storage.errors import WriteFailedError
from logbroker_storage.record_batch import encode_values
from logbroker_storage.segment_replacement import finish_replacements, replace_segments, write_replacement
from logbroker_storage.testing import FaultyFiles, MemoryFiles, ProcessKilled, Workbench
from logbroker_storage.testing.manual_clock import START_MS

OLD, REPLACED, NEW = f"{0:020d}.log", f"{7:020d}.log", f"{0:020d}.log.cleaned"
INDEX, NEW_INDEX = f"{0:020d}.index", f"{0:020d}.index.cleaned"
LIST = f"{0:020d}.replaces"
MERGED = encode_values([b"v"] * 9, [(0, START_MS)])  # offsets 0 to 8


def folder(*, is_in_place: bool) -> MemoryFiles:
    """A partition's folder, in which segments 0 and 7 are to become one; the new log is in place, or not yet."""
    files = MemoryFiles()
    files.mkdir("/t-0")
    for name in (OLD, REPLACED, INDEX):
        files.replace_file(f"/t-0/{name}", b"old")
    files.replace_file(f"/t-0/{NEW}", MERGED)
    files.replace_file(f"/t-0/{NEW_INDEX}", b"new")
    files.replace_file(f"/t-0/{LIST}", b"7\n")
    if is_in_place:
        files.rename(f"/t-0/{NEW}", f"/t-0/{OLD}")
    return files


def contents(files: MemoryFiles) -> dict[str, bytes]:
    return {name: files.read_file(f"/t-0/{name}") for name in files.listdir("/t-0")}


@pytest.mark.parametrize("is_in_place", [False, True])
def test_whoever_clears_up_may_die_at_it_too(is_in_place: bool) -> None:
    whole = {OLD: MERGED, INDEX: b"new"} if is_in_place else {OLD: b"old", REPLACED: b"old", INDEX: b"old"}
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


def compacting(bench: Workbench) -> None:
    """Two sealed segments, and a replacement for both that somebody has just written."""
    for value in (b"first", b"second"):
        bench.put(value)
        bench.log.roll_now()
    batches = [batch.data for base in (0, 1) for batch in segment_batches(bench.log, base)]
    write_replacement(bench.log, 0, batches)


def test_whoever_verifies_a_failed_partition_leaves_the_compaction_of_another_process_alone(
    tmp_path: Path,
) -> None:
    bench = Workbench(str(tmp_path / "data"))
    compacting(bench)
    bench.lose(2)
    replace_segments(bench.log, [0, 1])
    assert bench.segments() == [0, 2]
    assert bench.values() == [b"first", b"second"]
    bench.close()


def test_a_failed_partition_is_verified_over_a_replacement_that_a_dead_process_left_half_in_place(
    tmp_path: Path,
) -> None:
    bench = Workbench(str(tmp_path / "data"), retention_ms=-1)
    compacting(bench)
    os.rename(f"{bench.folder}/{NEW}", f"{bench.folder}/{OLD}")
    Path(bench.folder, LIST).write_bytes(b"1\n")
    bench.lose(2)
    assert bench.values() == [b"first", b"second"]
    bench.directory.maintenance.clean()
    assert bench.segments() == [0, 2]
    assert bench.values() == [b"first", b"second"]
    assert not bench.side_files()
    bench.close()


def test_a_replacement_that_is_gone_replaces_nothing(tmp_path: Path) -> None:
    bench = Workbench(str(tmp_path / "data"))
    compacting(bench)
    os.unlink(f"{bench.folder}/{NEW}")
    with pytest.raises(WriteFailedError, match="the next cleaning makes it again"):
        replace_segments(bench.log, [0, 1])
    finish_replacements(bench.log.files, bench.log.directory)
    assert bench.values() == [b"first", b"second"]
    bench.close()


@pytest.mark.parametrize("damaged", [b"", b"2\n", b"\xff\n", b"99"])
def test_a_damaged_list_has_no_other_segment_removed(tmp_path: Path, damaged: bytes) -> None:
    """What is superseded shows in the log that is in place."""
    bench = Workbench(str(tmp_path / "data"))
    compacting(bench)
    bench.put(b"third")
    bench.log.roll_now()
    bench.crash()
    os.rename(f"{bench.folder}/{NEW}", f"{bench.folder}/{OLD}")
    Path(bench.folder, LIST).write_bytes(damaged)
    bench.open()
    assert bench.segments() == [0, 2, 3]
    assert bench.values() == [b"first", b"second", b"third"]
    bench.close()


def test_the_next_open_takes_away_what_a_killed_compaction_left(tmp_path: Path) -> None:
    bench = Workbench(str(tmp_path / "data"))
    compacting(bench)
    bench.crash()  # the view is believed
    bench.open()
    assert not [name for name in os.listdir(bench.folder) if name.endswith(".cleaned")]
    assert bench.values() == [b"first", b"second"]
    bench.close()
