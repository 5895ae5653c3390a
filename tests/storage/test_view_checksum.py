"""The checksum of the view's file: noted by the last process to leave, taken away by the first to come."""

from __future__ import annotations

from pathlib import Path

import pytest

from logbroker_storage.startup import CHECKSUM
from logbroker_storage.testing import Workbench
from logbroker_storage.view.pages import _Walk, find_damage
from logbroker_storage.view.tables import TABLES


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    bench = Workbench(str(tmp_path / "data"))
    bench.put(b"a", producer_id=3, sequence=0)
    return bench


def view_file(bench: Workbench) -> Path:
    return Path(bench.path, "view", "data.mdb")


def test_it_is_there_while_nobody_has_the_directory_open(bench):
    checksum = Path(bench.directory.layout.view_checksum)
    assert not checksum.exists()
    bench.close()
    assert CHECKSUM.unpack(checksum.read_bytes())[0] == view_file(bench).stat().st_size
    bench.open()
    assert not checksum.exists()
    bench.crash()
    assert not checksum.exists()
    assert bench.open().values() == [b"a"]
    bench.close()


@pytest.mark.parametrize(
    "position", [16 + 24 + 2 * 48, 16 + 24 + 2 * 48 + 8]
)  # last page, transaction of a meta page
def test_a_change_that_lmdb_would_believe_has_the_view_rebuilt(bench, caplog, position):
    bench.close()
    content = bytearray(view_file(bench).read_bytes())
    content[position + 5] ^= 1
    view_file(bench).write_bytes(content)
    bench.open()
    assert "fails its checksum" in caplog.text
    assert bench.values() == [b"a"]
    assert bench.log.last_sequence(3) == 0
    bench.close()


def test_a_partitions_halves_that_changed_places_have_the_view_rebuilt(bench, caplog):
    """Both are stored under one key, so that each passes for the other by its checksum."""
    caplog.set_level("INFO")
    rows, key = bench.directory.view.partitions, bench.log.key
    with bench.directory.view.write() as transaction:
        end = transaction.get(key, db=rows._ends)
        transaction.put(key, transaction.get(key, db=rows._syncs), db=rows._ends)
        transaction.put(key, end, db=rows._syncs)
    bench.crash()
    bench.open()
    assert "is rebuilt from the logs" in caplog.text
    assert bench.values() == [b"a"]
    bench.close()


def test_one_that_is_torn_says_nothing(bench, caplog):
    bench.close()
    checksum = Path(bench.directory.layout.view_checksum)
    checksum.write_bytes(checksum.read_bytes()[:5])
    assert bench.open().values() == [b"a"]
    assert "damaged" not in caplog.text
    bench.close()


def test_the_walk_misses_no_table(bench):
    """LMDB would make a table anew, empty, when its name was changed or its node is not found any more."""
    bench.close()
    content = view_file(bench).read_bytes()
    assert find_damage(content, TABLES) is None
    renamed = content.replace(b"ends", b"endr")
    assert find_damage(renamed) is None
    assert find_damage(renamed, TABLES) is not None
    root = 4096 * _Walk(content)._main.root
    for bit in range(8 * (root + 16), 8 * (root + 16 + 2 * len(TABLES))):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        assert find_damage(bytes(changed), TABLES) is not None, bit - 8 * root
