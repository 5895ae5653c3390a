"""Every byte of every small file: nothing that is read, looked up or remembered changes.

Indexes, snapshots, checkpoints and metadata are caches, or say what the journal or a checksum says, too. Each is
damaged byte by byte and cut at every length, and the directory then opened: with its view, in which readers use
the indexes as they are, and without, so that everything is built from the files.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import InvalidRequestError

from .store import TOPIC, Answers, Store, ask

LOOKED_UP = 6  # offsets and times of each case, chosen anew


def damaged_bytes(content: bytes, rng: random.Random, *, all_bits: bool) -> Iterator[tuple[str, bytes]]:
    """*content* with each byte changed: by one bit and by several; in the long form by every bit."""
    for position in range(len(content)):
        masks = (
            [*(1 << bit for bit in range(8)), 0xFF]
            if all_bits
            else [rng.choice([1 << rng.randrange(8), 0xFF])]
        )
        for mask in masks:
            changed = bytearray(content)
            changed[position] ^= mask
            yield f"byte {position} ^ {mask:#x}", bytes(changed)


def cut_and_grown(content: bytes, rng: random.Random, *, all_lengths: bool) -> Iterator[tuple[str, bytes]]:
    """*content* cut short, and with bytes behind it."""
    lengths = list(range(len(content)))
    if not all_lengths:
        lengths = sorted({0, 1, *rng.sample(lengths, k=min(4, len(content)))})
    for length in lengths:
        yield f"cut to {length}", content[:length]
    for tail in (b"\0", bytes(40), b"\xff" * 12, rng.randbytes(34)):
        yield f"with {tail.hex()} behind", content + tail


class Lookups:
    """Answers of the sound directory, and what to ask."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self.store = store
        self._rng = rng
        batches = store.batches
        self._offsets = [
            offset for batch in batches for offset in (batch.offsets.start, batch.offsets.stop - 1)
        ]
        times = {record.timestamp_ms for batch in batches for record in batch.records}
        self._times = sorted({time_ms + around for time_ms in times for around in (-1, 0, 1)})
        directory = DataDirectory.open(str(store.data))
        try:
            self._all = ask(directory, self._offsets, self._times)
        finally:
            directory.close()
        assert not self._all.committed.damaged
        assert len(self._all.committed.records) < len(self._all.records[TOPIC, 0].records)

    def check(self, where: str, *, then: Callable[[DataDirectory], None] | None = None) -> None:
        """Open the directory, and compare every answer; *then* goes on with the open directory."""
        offsets = self._rng.sample(self._offsets, LOOKED_UP)
        times = self._rng.sample(self._times, LOOKED_UP)
        try:
            directory = DataDirectory.open(str(self.store.data))
        except Exception as error:
            raise AssertionError(f"{where}: it does not open: {error!r}") from error
        try:
            found = ask(directory, offsets, times)
            compare(found, self._all, where)
            if then is not None:
                then(directory)
        except Exception as error:
            raise AssertionError(f"{where}: {error!r}") from error
        finally:
            directory.close()


def compare(found: Answers, sound: Answers, where: str) -> None:
    for name in ("records", "committed", "ends", "sequences", "group"):
        assert getattr(found, name) == getattr(sound, name), (
            f"{where}: {name}: {getattr(found, name)!r:.2000} instead of {getattr(sound, name)!r:.2000}"
        )
    for offset, base_offset in found.by_offset.items():
        assert base_offset == sound.by_offset[offset], f"{where}: offset {offset} is found in {base_offset}"
    for time_ms, place in found.by_time.items():
        assert place == sound.by_time[time_ms], (
            f"{where}: {place} for {time_ms}, not {sound.by_time[time_ms]}"
        )


def says_newer(name: str, content: bytes) -> bool:
    """Whether this is a ``meta.properties`` of a version to come."""
    found = re.search(rb"^logbroker.format=([0-9]+)$", content, re.MULTILINE)
    return name.endswith("meta.properties") and found is not None and int(found[1]) > 1


def check_refused(store: Store, where: str) -> None:
    """The directory is not opened: what a newer version wrote may mean anything."""
    try:
        DataDirectory.open(str(store.data)).close()
    except InvalidRequestError:
        return
    raise AssertionError(f"{where}: it was opened")


def every_byte(store: Store, rng: random.Random, *, all_bits: bool) -> int:
    """How many damaged files were tried, each with the view and without."""
    lookups = Lookups(store, rng)
    cases = 0
    for name in store.small_files:
        content = store.sound_files[name]
        for what, damaged in (
            *damaged_bytes(content, rng, all_bits=all_bits),
            *cut_and_grown(content, rng, all_lengths=all_bits),
        ):
            for without_view in (False, True):
                store.restore(without_view=without_view)
                (store.data / name).write_bytes(damaged)
                view = "without the view" if without_view else "with the view"
                if says_newer(name, damaged):
                    check_refused(store, f"{name}, {what}, {view}")
                else:
                    lookups.check(f"{name}, {what}, {view}")
                cases += 1
    store.restore()
    return cases
