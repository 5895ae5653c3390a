"""Damaged bytes of every file, the bounded form (see ``damage``), and that its checks can fail."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator

import pytest

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.record_batch import StoredBatch, read_header

from .damage import run
from .damage.segments import every_bit, look_up
from .damage.small_files import Lookups, damaged_bytes
from .damage.store import TOPIC, Store
from .damage.view_flips import ViewDamage
from .damage.whole import Sound, check_kept, check_read, flip
from .proof import Proof, Row, delete_folder, new_folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_damage_is_detected_or_without_meaning(prove: Callable[[Proof], list[Row]]) -> None:
    prove(run)


# The checks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[Store]:
    folder = new_folder(in_memory=True)
    yield Store(folder, random.Random(5), segment_bytes=8 << 10)
    delete_folder(folder)


def test_a_flip_that_no_reader_notices_is_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is let believe every checksum."""

    def unchecked(view: memoryview, position: int = 0) -> StoredBatch:
        header = read_header(view, position)
        return StoredBatch(header, view[position : position + header.size_bytes])

    monkeypatch.setattr("logbroker_storage.log_reader.read_batch", unchecked)
    with pytest.raises(AssertionError, match="not noticed by a reader"):
        every_bit(store, random.Random(1), thorough=False)


def test_a_batch_that_is_found_at_another_s_offset_is_seen(store: Store) -> None:
    before, batch, behind = store.batches[2:5]
    directory = DataDirectory.open(str(store.data))
    try:
        log = directory.log(TOPIC, 0)
        look_up(log, behind.offsets.start, batch, before, behind, "sound")
        with pytest.raises(AssertionError):
            look_up(log, behind.offsets.start, batch, before, store.batches[6], "another")
    finally:
        directory.close()


def test_answers_that_changed_are_seen(store: Store) -> None:
    lookups = Lookups(store, random.Random(1))
    lookups.check("sound")
    flip(store.segments[0], store.batches[3].position + 70, 1)
    with pytest.raises(AssertionError, match="a damaged segment"):
        lookups.check("a damaged segment")
    store.restore()
    (store.data / "logs" / f"{TOPIC}-0" / "00000000000000000061.log").unlink()
    with pytest.raises(AssertionError):
        lookups.check("a missing segment")


def test_a_record_too_few_or_too_many_is_seen(store: Store) -> None:
    sound = Sound.of(store).plain
    hit = store.batches[3].offsets
    rest = tuple(record for record in sound.records if record.offset not in hit)
    check_read(type(sound)(rest, ((hit.start, hit.stop),)), sound, hit, "as it should be")
    for records, damaged in (
        (rest[1:], ((hit.start, hit.stop),)),
        (sound.records, ((hit.start, hit.stop),)),
        (rest, ()),
        (rest, ((hit.start, hit.stop + 1),)),
    ):
        with pytest.raises(AssertionError):
            check_read(type(sound)(records, damaged), sound, hit, "wrong")


def test_a_byte_that_repair_loses_is_seen() -> None:
    check_kept({"a.log": b"abcdef"}, {"a.log": b"abc", "a.log.cut-3": b"def"}, "cut")
    check_kept({"a.index": b"abc"}, {"a.index": b"new", "a.index.old": b"abc"}, "replaced")
    for after in ({"a.log": b"abc"}, {"a.log": b"abc", "a.log.cut-3": b"ef"}, {}):
        with pytest.raises(AssertionError):
            check_kept({"a.log": b"abcdef"}, after, "lost")


def test_the_death_of_a_process_is_told_with_the_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage = ViewDamage(store, random.Random(1))
    monkeypatch.setattr(damage, "_try", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(AssertionError, match="SIGKILL with this damage of the view"):
        damage.run(3)


def test_every_byte_and_every_bit_is_tried() -> None:
    content = b"abc"
    tried = {damaged for _, damaged in damaged_bytes(content, random.Random(1), all_bits=True)}
    assert len(tried) == len(content) * 9
    assert len(list(damaged_bytes(content, random.Random(1), all_bits=False))) == len(content)
