"""Room: zeros that a writer leaves in advance behind the end of the active log file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from logbroker_storage.files import OsFiles
from logbroker_storage.segment_files import ROOM_BYTES
from logbroker_storage.testing import FaultyFiles, LogBuilder, Workbench


def log_sizes(bench: Workbench) -> list[int]:
    names = sorted(name for name in os.listdir(bench.folder) if name.endswith(".log"))
    return [os.path.getsize(f"{bench.folder}/{name}") for name in names]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def test_small_synced_appends_share_one_piece_of_room(path):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    for _ in range(100):
        bench.put(b"v" * 100)
    (size,) = log_sizes(bench)
    assert bench.log.size_bytes() < size <= bench.log.size_bytes() + ROOM_BYTES
    assert files.calls["write_zeros"] == 2, "the log's and the journal's"
    assert files.calls["allocate"] == 1, "that of the view's lock file"
    bench.close()


@pytest.mark.parametrize("durability", ["os", "interval"])
def test_without_a_sync_an_append_there_is_no_room(path, durability):
    bench = Workbench(path, durability=durability)
    bench.put(b"v")
    assert log_sizes(bench) == [bench.log.size_bytes()]
    bench.close()


def test_a_segment_has_no_room_above_its_size(path):
    bench = Workbench(path, segment_bytes=1000)
    bench.put(b"v")
    assert log_sizes(bench) == [1000]
    bench.put(b"v" * 2000)
    assert log_sizes(bench)[1] == bench.log.size_bytes() - log_sizes(bench)[0] > 2000
    bench.close()


def test_a_roll_and_a_clean_close_cut_it_off(path):
    bench = Workbench(path)
    bench.put(b"a")
    bench.log.roll_now()
    sealed, active = log_sizes(bench)
    assert (sealed, active) == (bench.log.size_bytes(), 0)
    bench.put(b"b")
    bench.close()
    assert sum(log_sizes(bench)) == 2 * sealed
    assert bench.open().values() == [b"a", b"b"]
    bench.close()


def test_what_a_process_cuts_off_at_its_end_another_makes_anew(path):
    bench = Workbench(path)
    bench.put(b"a")
    other = (
        f"from logbroker_storage.testing import Workbench; w = Workbench({path!r}); w.put(b'b'); w.close()"
    )
    subprocess.run([sys.executable, "-c", other], check=True, timeout=60)
    assert log_sizes(bench) == [bench.log.size_bytes()]
    bench.put(b"c")
    bench.put(b"d")
    assert log_sizes(bench)[0] > bench.log.size_bytes()
    assert bench.values() == [b"a", b"b", b"c", b"d"]
    bench.close()


def test_a_batch_in_the_room_of_a_dead_process_is_adopted_and_a_torn_one_cut(path):
    bench = Workbench(path)
    bench.put(b"a")
    end = bench.log.state().end
    batch = bench.batch(b"b")
    batch[:8] = (1).to_bytes(8, "big")
    active = bench.log.segment(0)
    active.write_log(batch + batch[:30], end.active_bytes)
    bench.crash()
    bench.open()
    assert bench.put(b"c").base_offset == 2
    assert bench.values() == [b"a", b"b", b"c"]
    (side_file,) = bench.side_files()
    kept = Path(bench.folder, side_file).read_bytes()
    assert kept.rstrip(b"\0") == bytes(batch[:30]).rstrip(b"\0")
    bench.close()


def test_the_room_of_a_process_that_was_killed_goes_with_the_next_open(path):
    bench = Workbench(path)
    bench.put(b"a")
    bench.crash()
    assert log_sizes(bench)[0] > ROOM_BYTES
    bench.open()
    assert log_sizes(bench) == [bench.log.size_bytes()]
    assert bench.log.offsets().log_end_offset == 1
    bench.put(b"b")
    assert bench.values() == [b"a", b"b"]
    assert bench.side_files() == []
    bench.close()
    assert LogBuilder(bench.folder).values() == [b"a", b"b"]


@pytest.mark.parametrize("written", [0, 1000])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_where_none_can_be_made_appends_go_on_without(path, error, written):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    files.fail("write_zeros", error=error, forever=True, written=written)
    bench.put(b"a")
    bench.put(b"b")
    assert log_sizes(bench) == [bench.log.size_bytes()]
    assert bench.values() == [b"a", b"b"]
    bench.close()


def test_room_that_can_neither_be_made_nor_given_back_refuses_no_batch(path):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    files.fail("write_zeros", error=errno.ENOSPC, forever=True, written=1000)
    files.fail("truncate", path=".log", error=errno.EIO, forever=True)
    bench.put(b"a")
    bench.put(b"b")
    assert bench.values() == [b"a", b"b"]
    files.heal()
    bench.put(b"c")
    assert bench.values() == [b"a", b"b", b"c"]
    bench.close()


def test_who_comes_into_the_room_of_another_makes_more_where_that_ends(path):
    bench = Workbench(path)
    bench.put(b"a")
    (before,) = log_sizes(bench)
    other = (
        f"from logbroker_storage.testing import Workbench; w = Workbench({path!r})\n"
        f"while w.log.size_bytes() <= {before}: w.put(b'b' * 5000)\n"
        "import os; os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", other], check=True, timeout=60)
    (after,) = log_sizes(bench)
    assert after >= bench.log.size_bytes() + ROOM_BYTES - 5200
    bench.close()


def test_a_failed_write_into_room_is_taken_back(path):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files)
    bench.put(b"a")
    files.fail("pwrite", path=".log", error=errno.EIO, written=20)
    with pytest.raises(Exception, match="nothing was appended"):
        bench.put(b"b")
    bench.put(b"c")
    assert bench.values() == [b"a", b"c"]
    assert bench.side_files() == []
    bench.close()


def test_a_roll_that_cannot_cut_it_off_refuses_the_append_and_succeeds_later(path):
    files = FaultyFiles(OsFiles())
    bench = Workbench(path, files=files, segment_bytes=300)
    bench.put(b"a" * 100)
    files.fail("truncate", path=".log", error=errno.EIO)
    with pytest.raises(Exception, match="nothing was appended"):
        bench.put(b"b" * 200)
    bench.put(b"c" * 200)
    assert bench.values() == [b"a" * 100, b"c" * 200]
    bench.close()
    assert LogBuilder(bench.folder).values() == bench.open().values()
    bench.close()
