"""Damage of stored bytes: detected or without meaning; never a crash, never a wrong record, all other batches readable.

module        what is damaged
segments      every bit of a 64 KiB segment, one at a time, as readers, recovery and the inspector meet it
whole         bits of segments and of the journal, and cut segments, with everything that is done to a directory
small_files   every byte of every index, snapshot, checkpoint and metadata file, and every length
view_flips    the view's file, of a directory that was closed and of one whose last process was killed
store         the directory, and what must be read from it
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..proof import Row, Scope, delete_folder, new_folder
from .segments import every_bit
from .small_files import every_byte
from .store import Store
from .view_flips import ViewDamage
from .whole import flipped_journal, flipped_segments, torn_segments

SMALL_SEGMENT_BYTES = 8 << 10
VIEWS = 400  # that are opened, bounded: each takes 6 ms; what its checksum notices is tried 50 times as often


def run(scope: Scope) -> Iterator[Row]:
    """All of the above; what the product says about the damage is not shown."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    folder = new_folder(in_memory=True)
    try:
        yield from _segments(scope, folder / "large")
        yield from _small(scope, folder / "small")
    finally:
        logging.disable(disabled)
        delete_folder(folder)


def _segments(scope: Scope, folder: Path) -> Iterator[Row]:
    folder.mkdir()
    rng = scope.rng("damage segments")
    store = Store(folder, rng)
    yield Row("every bit of a segment", every_bit(store, rng, thorough=scope.is_long), "flips", scope.seed)


def _small(scope: Scope, folder: Path) -> Iterator[Row]:
    folder.mkdir()
    rng = scope.rng("damage small")
    store = Store(folder, rng, segment_bytes=SMALL_SEGMENT_BYTES)
    cases = flipped_segments(store, rng, scope.count(120, 40_000))
    yield Row("bits of segments, the whole directory", cases, "flips", scope.seed)
    size = store.segments[-1].stat().st_size
    cases = torn_segments(store, rng, list(range(0, size, scope.count(9, 1))))
    yield Row("cut segments", cases, "cuts", scope.seed)
    cases = flipped_journal(store, rng, scope.count(150, 0), every_bit=scope.is_long)
    yield Row("bits of the journal", cases, "flips", scope.seed)
    cases = every_byte(store, rng, all_bits=scope.is_long)
    yield Row("every byte of the small files", cases, "damaged files", scope.seed)
    view = ViewDamage(store, rng)
    cases = view.run(scope.count(VIEWS, 20_000))
    yield Row("the view of a closed directory", cases, "opened", scope.seed)
    yield Row("the same, its checksum", view.noticed(scope.count(20_000, 200_000)), "flips", scope.seed)
    with _killed(store):
        cases = view.run(scope.count(VIEWS, 20_000))
        yield Row("the view behind a kill", cases, "opened", scope.seed)
        yield Row(
            "the same, the walk over its pages", view.walked(scope.count(2_000, 200_000)), "flips", scope.seed
        )


@contextmanager
def _killed(store: Store) -> Iterator[None]:
    """As if the last process had been killed: it has noted no checksum."""
    name = "view.checksum"
    checksum = store.sound_files.pop(name)
    try:
        yield
    finally:
        store.sound_files[name] = checksum


__all__ = ["run"]
