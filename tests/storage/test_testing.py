"""The stand-ins themselves: what a test asks of them is what they do."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logbroker_storage.files import OsFiles
from logbroker_storage.testing import (
    FaultyFiles,
    LogBuilder,
    ManualClock,
    MemoryFiles,
    MemoryRows,
    ProcessKilled,
    RecordingFiles,
)


def written(files, path: str, data: bytes) -> int:
    fd = files.open(path, create=True)
    files.pwrite(fd, data, 0)
    return fd


# MemoryFiles --------------------------------------------------------------------------------------------


def test_a_power_cut_takes_back_what_was_not_synced():
    files = MemoryFiles()
    fd = written(files, "/a", b"synced")
    files.fsync(fd)
    files.fsync_directory("/")
    files.pwrite(fd, b"not", 0)
    files.close(written(files, "/b", b"new"))
    left = files.after_power_cut()
    assert left.listdir("/") == ["a"]
    assert left.read_file("/a") == b"synced"
    assert files.unsynced_paths() == ["/", "/a", "/b"]


def test_a_synced_file_without_a_synced_name_is_lost():
    files = MemoryFiles()
    files.fsync(written(files, "/a", b"x"))
    assert files.after_power_cut().listdir("/") == []


def test_a_name_can_survive_without_its_bytes():
    files = MemoryFiles()
    written(files, "/a", b"x")
    files.fsync_directory("/")
    assert files.after_power_cut().read_file("/a") == b""


@settings(deadline=None)
@given(st.integers())
def test_a_replaced_file_is_old_or_new_after_any_power_cut(seed):
    files = MemoryFiles()
    files.replace_file("/a", b"old")
    survivors = random.Random(seed)
    faulty = FaultyFiles(files).kill(at=survivors.randint(1, 7))
    try:
        faulty.replace_file("/a", b"new")
    except ProcessKilled:
        assert files.after_power_cut(survivors).read_file("/a") in (b"old", b"new")
    else:
        assert files.after_power_cut(survivors).read_file("/a") == b"new"


def test_unsynced_writes_survive_in_every_combination():
    """Sectors of a write, and later writes without earlier ones: all of it can be found."""
    found = set()
    for seed in range(300):
        files = MemoryFiles()
        fd = written(files, "/a", b"o" * 1024)
        files.fsync(fd)
        files.fsync_directory("/")
        files.pwrite(fd, b"n" * 1024, 0)
        files.pwrite(fd, b"+" * 512, 1024)
        left = files.after_power_cut(random.Random(seed)).read_file("/a")
        found.add(bytes(left[::512]))
    assert {b"oo", b"no", b"on", b"nn", b"oo+", b"nn+", b"no+"} <= found


def test_syncs_are_counted_and_descriptors_too():
    files = MemoryFiles()
    fd = written(files, "/a", b"x")
    assert (files.sync_count("/a"), files.sync_count("/"), files.open_descriptors()) == (0, 0, 1)
    files.fdatasync(fd)
    files.fsync(fd)
    files.fsync_directory("/")
    files.close(fd)
    assert (files.sync_count("/a"), files.sync_count("/"), files.open_descriptors()) == (2, 1, 0)
    with pytest.raises(OSError):
        files.pread(fd, 1, 0)


# FaultyFiles --------------------------------------------------------------------------------------------


def test_the_nth_call_fails_once():
    files = FaultyFiles(MemoryFiles()).fail("fdatasync", at=2, error=errno.EIO)
    fd = written(files, "/a", b"x")
    files.fdatasync(fd)
    with pytest.raises(OSError) as failed:
        files.fdatasync(fd)
    assert failed.value.errno == errno.EIO
    files.fdatasync(fd)
    assert files.calls["fdatasync"] == 3


def test_a_fault_can_be_of_one_path_and_for_good():
    files = FaultyFiles(MemoryFiles()).fail("pwrite", path=".index", error=errno.ENOSPC, forever=True)
    written(files, "/a.log", b"x")
    for _ in range(3):
        with pytest.raises(OSError):
            written(files, "/a.index", b"x")
    files.heal()
    written(files, "/a.index", b"x")


@pytest.mark.parametrize("operation", ["pwrite", "pwritev"])
def test_a_failing_write_can_leave_its_beginning(operation):
    files = FaultyFiles(MemoryFiles()).fail(operation, written=2, error=errno.ENOSPC)
    fd = files.open("/a", create=True)
    with pytest.raises(OSError):
        getattr(files, operation)(fd, b"abc" if operation == "pwrite" else [b"a", b"bc"], 0)
    assert files.read_file("/a") == b"ab"


def test_a_killed_process_does_nothing_more():
    inner = MemoryFiles()
    files = FaultyFiles(inner).kill(at=3)
    fd = written(files, "/a", b"x")
    with pytest.raises(ProcessKilled):
        files.pwrite(fd, b"y", 0)
    with pytest.raises(ProcessKilled):
        files.unlink("/a")
    assert inner.read_file("/a") == b"x"


def test_a_misspelt_operation_is_refused():
    with pytest.raises(ValueError):
        FaultyFiles(MemoryFiles()).fail("fdatasink", error=errno.EIO)


# RecordingFiles -----------------------------------------------------------------------------------------


def test_a_power_cut_can_be_played_on_a_real_directory(tmp_path):
    root, after = tmp_path / "root", tmp_path / "after"
    root.mkdir()
    after.mkdir()
    files = RecordingFiles(OsFiles(), str(root))
    files.mkdir(f"{root}/d")
    files.fsync_directory(str(root))
    files.replace_file(f"{root}/d/kept", b"kept")
    files.close(written(files, f"{root}/d/lost", b"lost"))
    files.close(written(files, str(tmp_path / "outside"), b"x"))
    assert sorted(path.name for path in (root / "d").iterdir()) == ["kept", "lost"]
    files.export_after_power_cut(str(after))
    assert [path.name for path in (after / "d").iterdir()] == ["kept"]
    assert (after / "d" / "kept").read_bytes() == b"kept"


# ManualClock --------------------------------------------------------------------------------------------


def test_the_clock_moves_only_when_told():
    clock = ManualClock(now_ms=1000)
    clock.advance(ms=1500)
    assert (clock.now_ms(), clock.monotonic()) == (2500, 1.5)
    clock.set_back(ms=2000)
    assert (clock.now_ms(), clock.monotonic()) == (500, 1.5)


# LogBuilder ---------------------------------------------------------------------------------------------


def test_a_torn_tail_hides_the_last_batch(tmp_path):
    log = LogBuilder(str(tmp_path)).batch(b"a", b"b").batch(b"c").torn(drop_bytes=3)
    assert log.values() == [b"a", b"b"]


def test_segments_follow_each_other_and_a_log_is_continued(tmp_path):
    LogBuilder(str(tmp_path)).batch(b"a", b"b").roll().batch(b"c")
    log = LogBuilder(str(tmp_path)).batch(b"d")
    assert [(record.offset, record.value) for record in log.stored_records()] == list(
        enumerate([b"a", b"b", b"c", b"d"])
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000000000000000000.log",
        "00000000000000000002.log",
    ]
    times = [record.timestamp_ms for record in log.stored_records()]
    assert times == sorted(set(times))


# MemoryRows ---------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.binary(max_size=2), st.none() | st.binary(max_size=2))),
    st.binary(max_size=2),
    st.binary(max_size=2),
    st.integers(0, 5),
)
def test_memory_rows_are_an_ordered_table(writes, begin, end, limit):
    """None deletes; what is read is what sorting everything would give."""
    rows = MemoryRows()
    expected: dict[bytes, bytes] = {}
    for key, value in writes:
        if value is None:
            rows.delete(key)
            expected.pop(key, None)
        else:
            rows.put(key, value)
            expected[key] = value
        assert rows.get(key) == value
    assert rows.snapshot() == expected
    ordered = sorted(expected.items())
    assert rows.first(begin, end, limit) == [row for row in ordered if begin <= row[0] < end][:limit]
    assert rows.floor(begin, end) == max((row for row in ordered if begin <= row[0] <= end), default=None)


def test_memory_rows_count_what_is_touched():
    """Also a look that finds nothing is one."""
    rows = MemoryRows()
    rows.put(b"a", b"")
    rows.put(b"b", b"")
    assert rows.touched == 2
    rows.first(b"", b"z", 9)
    assert rows.touched == 5
    rows.get(b"c")
    rows.floor(b"", b"c")
    rows.delete(b"c")
    assert rows.touched == 8
