"""The view: checked values, and an LMDB file that is looked through before LMDB is let near it."""

from __future__ import annotations

import fcntl
import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage.errors import ClosedError, ViewError
from logbroker_storage.producer_state import BatchSpan, ProducerEntry
from logbroker_storage.testing import Workbench
from logbroker_storage.view import LogEnd, PartitionState, SyncPoint, View, partition_key
from logbroker_storage.view.environment import WRITING_FILE
from logbroker_storage.view.pages import find_damage
from logbroker_storage.view.partition_rows import PartitionRows
from logbroker_storage.view.partitions import LOG_END, SYNC_POINT, empty_log_end

KEY = partition_key(bytes(16), 3)
ENTRY = ProducerEntry(1, (BatchSpan(0, 1, 2, 3, 4),))


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    view = View(str(tmp_path))
    yield view
    view.close()


def put_partition(view: View, key: bytes = KEY) -> None:
    with view.write() as transaction:
        view.partitions.put_log_end(transaction, key, empty_log_end(5))
        view.partitions.put_sync_point(transaction, key, SyncPoint(5, 0, 0))


def raw(view: View, table: bytes, key: bytes, value: bytes) -> None:
    """Put bytes into a table past the view's own checks."""
    with view.lmdb.begin(write=True) as transaction:
        transaction.put(key, value, db=view.lmdb.open_db(table, txn=transaction))


# Values -----------------------------------------------------------------------------------------------


def test_a_partition_s_state_is_both_halves_or_nothing(view):
    assert view.partitions.state(KEY) is None
    with view.write() as transaction:
        view.partitions.put_log_end(transaction, KEY, empty_log_end(5))
    assert view.partitions.state(KEY) is None
    put_partition(view)
    assert view.partitions.state(KEY) == PartitionState(empty_log_end(5), SyncPoint(5, 0, 0))


INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.builds(LogEnd, *[INT64] * 16), st.builds(SyncPoint, INT64, INT64, INT64))
def test_states_survive_their_encoding(end, sync):
    assert LogEnd._make(LOG_END.unpack(LOG_END.pack(*end))) == end
    assert SyncPoint._make(SYNC_POINT.unpack(SYNC_POINT.pack(*sync))) == sync


@pytest.mark.parametrize(
    ("visible", "synced", "failed", "high_watermark"),
    [(5, 3, 0, 5), (3, 5, 0, 5), (5, 3, 1, 3), (3, 5, 1, 5)],
)
def test_the_high_watermark_is_what_is_synced_or_visible_and_after_a_failed_sync_only_what_is_synced(
    visible, synced, failed, high_watermark
):
    state = PartitionState(empty_log_end()._replace(visible_offset=visible), SyncPoint(synced, 0, failed))
    assert state.high_watermark == high_watermark


def test_nothing_is_published_of_a_partition_that_was_deleted(view):
    put_partition(view)
    with view.write() as transaction:
        view.drop_partition(transaction, KEY)
    assert not view.partitions.publish_append(KEY, empty_log_end(9), 1, ENTRY)
    assert not view.partitions.publish_sync(KEY, SyncPoint(9, 0, 0))
    assert view.partitions.state(KEY) is None
    assert view.partitions.producers(KEY) == {}


def test_producers_are_kept_by_partition(view):
    other = partition_key(bytes(16), 4)
    for key in (KEY, other):
        put_partition(view, key)
        assert view.partitions.publish_append(key, empty_log_end(6), 7, ENTRY)
    with view.write() as transaction:
        view.partitions.drop_producer(transaction, KEY, 7)
        view.partitions.put_producer(transaction, KEY, 8, ENTRY)
    assert view.partitions.producers(KEY) == {8: ENTRY}
    assert view.partitions.producers(other) == {7: ENTRY}
    assert view.partitions.append_state(other, 7) == (
        PartitionState(empty_log_end(6), SyncPoint(5, 0, 0)),
        ENTRY,
    )
    assert view.partitions.append_state(other, 9)[1] is None


def test_what_another_process_publishes_is_seen_through_every_cache(view):
    """Two handles on one file stand for two processes, but must not be in one: so raw puts play the other."""
    put_partition(view)
    view.partitions.publish_append(KEY, empty_log_end(6), 7, ENTRY)
    other = PartitionRows(view, view.message_ids)
    other.publish_append(KEY, empty_log_end(10), 7, ENTRY._replace(epoch=2))
    other.publish_sync(KEY, SyncPoint(10, 0, 0))
    state, entry = view.partitions.append_state(KEY, 7)
    assert state == PartitionState(empty_log_end(10), SyncPoint(10, 0, 0))
    assert entry == ENTRY._replace(epoch=2)


def test_failed_partitions_are_found(view):
    put_partition(view)
    assert view.partitions.failed() == []
    view.partitions.publish_sync(KEY, SyncPoint(5, 0, 1))
    assert view.partitions.failed() == [KEY]


def test_volatile_values_are_changed_in_one_step_and_forgotten_together(view):
    assert view.volatile.update(b"a", lambda before: b"1" if before is None else b"2") == b"1"
    assert view.volatile.update(b"a", lambda before: b"1" if before is None else b"2") == b"2"
    view.volatile.update(b"ab", lambda _: b"x")
    view.volatile.update(b"b", lambda _: b"y")
    assert view.volatile.items(b"a") == [(b"a", b"2"), (b"ab", b"x")]
    assert view.volatile.update(b"a", lambda _: None) is None
    assert view.volatile.value(b"a") is None
    view.volatile.clear()
    assert view.volatile.items(b"") == []


def test_a_change_that_raises_changes_nothing(view):
    view.volatile.update(b"a", lambda _: b"1")

    def refuse(_: bytes | None) -> bytes:
        raise ValueError

    with pytest.raises(ValueError):
        view.volatile.update(b"a", refuse)
    assert view.volatile.value(b"a") == b"1"


def test_events_are_found_by_prefix_and_deleted_by_none(view):
    with view.write() as transaction:
        view.events.apply(transaction, [(b"x\0a", b"1"), (b"x\0b", b"2"), (b"y\0a", b"3")])
        view.events.apply(transaction, [(b"x\0a", None), (b"x\0b", b"4")])
    assert view.events.items(b"x\0") == [(b"x\0b", b"4")]
    assert view.events.value(b"y\0a") == b"3"
    assert view.events.value(b"x\0a") is None


# Damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 31, 32, 100, 800])
def test_a_flipped_bit_of_a_value_is_an_error_and_marks_the_view(view, bit):
    put_partition(view)
    with view.lmdb.begin() as transaction:
        stored = bytearray(transaction.get(KEY, db=view.tables["ends"]))
    stored[bit // 8] ^= 1 << bit % 8
    raw(view, b"ends", KEY, bytes(stored))
    for use in (lambda: view.partitions.state(KEY), lambda: view.partitions.append_state(KEY, 1), view.check):
        with pytest.raises(ViewError):
            use()
    assert os.path.exists(f"{view.path}/damaged")


def test_a_value_under_the_wrong_key_is_an_error(view):
    put_partition(view)
    with view.lmdb.begin() as transaction:
        stored = transaction.get(KEY, db=view.tables["ends"])
    raw(view, b"ends", KEY[:-1] + b"x", stored)
    with pytest.raises(ViewError):
        view.check()


def test_a_sound_view_passes_its_check(view):
    put_partition(view)
    view.volatile.update(b"a", lambda _: b"1" * 100_000)
    view.check()


def test_what_is_no_lmdb_file_is_an_error(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(ViewError):
        View(str(tmp_path))


def test_a_closed_view_says_so(tmp_path):
    view = View(str(tmp_path))
    view.close()
    for use in (
        lambda: view.partitions.state(KEY),
        lambda: view.events.value(b"a"),
        lambda: view.volatile.update(b"a", lambda _: b""),
    ):
        with pytest.raises(ClosedError):
            use()


def test_nobody_writes_who_has_not_the_lock_for_it(view, tmp_path):
    """Or a process that waits for LMDB's own lock might wait for ever: see ``environment``."""
    put_partition(view)
    lock = os.open(tmp_path / WRITING_FILE, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    writes = [
        lambda: put_partition(view),
        lambda: view.partitions.publish_append(KEY, empty_log_end(6)),
        lambda: view.partitions.publish_sync(KEY, SyncPoint(6, 0, 0)),
    ]
    open_another = "import sys; from logbroker_storage.view import View; View(sys.argv[1]).close()"
    opening = subprocess.Popen([sys.executable, "-c", open_another, str(tmp_path)])
    threads = [threading.Thread(target=write) for write in writes]
    for thread in threads:
        thread.start()
    with pytest.raises(subprocess.TimeoutExpired):
        opening.wait(0.5)
    assert all(thread.is_alive() for thread in threads)
    with view.lmdb.begin(write=True):  # nobody has it, and nobody waits for it
        pass
    os.close(lock)
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert opening.wait(30) == 0


def test_a_closed_view_opens_no_lock_again(tmp_path):
    view = View(str(tmp_path))
    view.close()
    gc.collect()  # what others left is not to go meanwhile
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None
    with pytest.raises(ClosedError), view.write():
        pass
    assert before is None or len(os.listdir("/proc/self/fd")) == before


CLOSED_WHILE_ANOTHER_WRITES = """
import sys, threading
from concurrent.futures import Future
from logbroker_storage.view import View

view, begun, go_on, outcome = View(sys.argv[1]), threading.Event(), threading.Event(), Future()

def write():
    try:
        with view.write() as transaction:
            begun.set()
            go_on.wait()
            transaction.put(b"key", b"value")
        outcome.set_result("written")
    except BaseException as error:
        outcome.set_exception(error)  # whose traceback refers to the transaction

threading.Thread(target=write, daemon=True).start()
begun.wait()
threading.Timer(0.2, go_on.set).start()
view.close()
print(outcome.result())
"""


def test_closing_waits_for_the_transaction_of_another_thread(tmp_path):
    """In a process of its own: where it waits for what never comes no signal ends it but a kill."""
    command = [sys.executable, "-c", CLOSED_WHILE_ANOTHER_WRITES, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=30).stdout == "written\n"


# The walk over LMDB's pages ---------------------------------------------------------------------------


def fill(env: lmdb.Environment, choose: random.Random, steps: int) -> None:
    table = env.open_db(b"table")
    for _ in range(steps):
        with env.begin(write=True) as transaction:
            for _ in range(choose.randint(1, 30)):
                key = b"%d" % choose.randrange(800)
                if choose.random() < 0.3:
                    transaction.delete(key, db=table)
                else:
                    transaction.put(key, bytes(choose.choice([0, 10, 100, 5000, 30_000])), db=table)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_lmdb_has_written_is_found_sound(tmp_path, seed):
    """Trees of several levels, values in overflow pages, lists of free pages."""
    choose = random.Random(seed)
    with lmdb.open(str(tmp_path), max_dbs=3, map_size=1 << 30, sync=False, lib_version=0) as env:
        for _ in range(5):
            fill(env, choose, 1 + choose.randrange(10))
            assert find_damage((tmp_path / "data.mdb").read_bytes()) is None


def directory_with_a_view(path: str) -> bytes:
    bench = Workbench(path, partitions=40, durability="os")
    for number in range(40):
        bench.put(b"%d" % number, partition=number, producer_id=number, sequence=0, sync=False)
        bench.directory.view.volatile.update(b"%d" % number, lambda _: b"v" * 150)
    bench.directory.view.volatile.update(b"large", lambda _: b"v" * 9000)
    bench.directory.view.volatile.update(b"large", lambda _: b"v" * 6000)
    bench.close()
    return Path(path, "view", "data.mdb").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "missing", "rubbish"])
def test_a_view_that_is_not_whole_is_rebuilt(tmp_path, damage):
    path = str(tmp_path / "data")
    content = directory_with_a_view(path)
    file = Path(path, "view", "data.mdb")
    if damage == "missing":
        file.unlink()
    else:
        choices = {"cut": content[: len(content) // 2], "empty": b"", "zeros": bytes(len(content))}
        file.write_bytes(choices.get(damage, content[::-1]))
    bench = Workbench(path)
    assert [bench.values(partition=number) for number in range(40)] == [
        [b"%d" % number] for number in range(40)
    ]
    bench.close()


def test_a_view_whose_last_reader_died_of_it_is_rebuilt(tmp_path):
    """The mark is set before LMDB opens the file, and taken away behind the checks."""
    path = str(tmp_path / "data")
    directory_with_a_view(path)
    Path(path, "view", "damaged").touch()
    bench = Workbench(path)
    assert not Path(path, "view", "damaged").exists()
    assert bench.values(partition=7) == [b"7"]
    assert bench.directory.view.volatile.items(b"") == []
    bench.close()
