"""Damage of a log, tried on the whole directory: what every other part of the product makes of it.

For a share of the bits of topic ``t``, and of the journal's segment, in turn: opened with the view and without,
read in both isolations, appended to, verified and repaired by the inspector, and read again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import encode_values
from logbroker_tools.findings import Finding, Severity
from logbroker_tools.layout import find
from logbroker_tools.repair import repair_all
from logbroker_tools.verify import verify

from .store import GROUP, NOW_MS, OTHER, TOPIC, Batch, Read, Store, batches_of, read_all

JOURNAL = "logs/__journal-0/00000000000000000000.log"


@dataclass(frozen=True)
class Sound:
    """What the directory says without damage."""

    plain: Read
    committed: Read
    end_offset: int

    @classmethod
    def of(cls, store: Store) -> Sound:
        directory = DataDirectory.open(str(store.data))
        try:
            log = directory.log(TOPIC, 0)
            return cls(read_all(log), read_all(log, Isolation.READ_COMMITTED), log.offsets().log_end_offset)
        finally:
            directory.close()


def flipped_segments(store: Store, rng: random.Random, cases: int) -> int:
    """So many single bits of the segments of ``t``, each tried with the view and without."""
    sound = Sound.of(store)
    for _ in range(cases):
        batch = rng.choice(store.batches)
        position = rng.randrange(batch.position, batch.end_position)
        bit = rng.randrange(8)
        for without_view in (False, True):
            store.restore(without_view=without_view)
            flip(batch.segment, position, bit)
            view = "deleted" if without_view else "kept"
            where = f"bit {bit} of byte {position} of {batch.segment.name}, view {view}"
            _try_damaged(store, sound, batch, where)
    store.restore()
    return cases * 2


def flip(path: Path, position: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def _try_damaged(store: Store, sound: Sound, batch: Batch, where: str) -> None:
    folder = batch.segment.parent
    (finding,) = _errors(store, where)
    offsets = batch.offsets
    is_last = offsets.stop == sound.end_offset
    assert (finding.path, finding.position) == (str(batch.segment), batch.position), f"{where}: {finding}"
    assert finding.start_offset == offsets.start, f"{where}: {finding}"
    assert finding.end_offset == (None if is_last else offsets.stop), f"{where}: {finding}"
    before = contents(folder)
    directory = DataDirectory.open(str(store.data))
    try:
        log = directory.log(TOPIC, 0)
        assert log.offsets().log_end_offset == sound.end_offset, f"{where}: the log ends elsewhere"
        check_read(read_all(log), sound.plain, offsets, where)
        check_committed(read_all(log, Isolation.READ_COMMITTED), sound, batch, where)
        appended = log.append(encode_values([b"more"], [(0, NOW_MS)]))
        log.sync()
        assert appended.base_offset == sound.end_offset, f"{where}: an offset is given twice"
        check_read(read_all(log), sound.plain, offsets, where, more=1)
    finally:
        directory.close()
    assert batch.segment.read_bytes().startswith(before[batch.segment.name]), (
        f"{where}: damage was cut or mended"
    )
    before = contents(folder)
    repair_all(find(str(store.data)))
    check_kept(before, contents(folder), where)
    directory = DataDirectory.open(str(store.data))
    try:
        check_read(read_all(directory.log(TOPIC, 0)), sound.plain, offsets, f"{where}, repaired", more=1)
    finally:
        directory.close()


def check_read(found: Read, sound: Read, damaged: range, where: str, *, more: int = 0) -> None:
    """All records but those of the damaged batch, which one error names; *more* have been appended."""
    assert found.damaged == ((damaged.start, damaged.stop),), f"{where}: {found.damaged}"
    expected = [record for record in sound.records if record.offset not in damaged]
    records = list(found.records)
    assert records[: len(records) - more] == expected, f"{where}: other records are read"


def check_committed(found: Read, sound: Sound, damaged: Batch, where: str) -> None:
    """Committed records: no aborted one among them, unless it is the marker that is damaged, which alone says so."""
    known = set(sound.committed.records)
    if not damaged.header.is_control:
        strangers = [record.offset for record in found.records if record not in known]
        assert not strangers, f"{where}: aborted records are read: {strangers}"


def _errors(store: Store, where: str) -> list[Finding]:
    found = [finding for finding in verify(find(str(store.data))) if finding.severity is Severity.ERROR]
    assert len(found) == 1, f"{where}: {found}"
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def check_kept(before: Mapping[str, bytes], after: Mapping[str, bytes], where: str) -> None:
    """Every byte of *before* is in *after*: in the same file, in a side file of it, or in parts in both."""
    for name, content in before.items():
        now = after.get(name, b"")
        aside = [kept for other, kept in after.items() if other.startswith(f"{name}.")]
        is_kept = content == now or content in aside or any(now + kept == content for kept in aside)
        assert is_kept, f"{where}: bytes of {name} are nowhere"


# Truncation, and bytes behind ---------------------------------------------------------------------------------


def torn_segments(store: Store, rng: random.Random, lengths: list[int]) -> int:
    """The last segment cut at these lengths, with rubbish behind in every other case: below the synced end.

    All batches before the cut are read; the rest is reported; what is cut off by anybody is kept.
    """
    segment = store.segments[-1]
    content = store.sound_files[str(segment.relative_to(store.data))]
    batches = list(batches_of_content(store, segment))
    sound = Sound.of(store)
    for number, length in enumerate(lengths):
        for without_view in (False, True):
            store.restore(without_view=without_view)
            segment.write_bytes(content[:length] + (rng.randbytes(40) if number % 2 else b""))
            where = f"{segment.name} cut to {length}, view {'deleted' if without_view else 'kept'}"
            before = contents(segment.parent)
            whole = [batch for batch in batches if batch.end_position <= length]
            end = whole[-1].offsets.stop if whole else batches[0].offsets.start
            directory = DataDirectory.open(str(store.data))
            try:
                log = directory.log(TOPIC, 0)
                found = read_all(log)
                assert found.damaged == ((end, sound.end_offset),), f"{where}: {found.damaged}"
                assert list(found.records) == [r for r in sound.plain.records if r.offset < end], where
                appended = log.append(encode_values([b"more"], [(0, NOW_MS)]))
                assert appended.base_offset == sound.end_offset, f"{where}: an offset is given twice"
            finally:
                directory.close()
            check_kept_start(before, contents(segment.parent), where)
    store.restore()
    return len(lengths) * 2


def batches_of_content(store: Store, segment: Path) -> list[Batch]:
    return [batch for batch in store.batches if batch.segment == segment]


def check_kept_start(before: Mapping[str, bytes], after: Mapping[str, bytes], where: str) -> None:
    """As ``check_kept``, for logs, which may have been appended to; zeros at the end count as room."""
    for name, content in before.items():
        if name.endswith(".log"):
            content, now = content.rstrip(b"\0"), after.get(name, b"")
            is_kept = now.startswith(content)
            for other, kept in after.items():
                if other.startswith(f"{name}.cut-"):
                    position = int(other.removeprefix(f"{name}.cut-").split(".")[0])
                    is_kept = is_kept or (now[:position] + kept).startswith(content)
            assert is_kept, f"{where}: bytes of {name} are nowhere"


# The journal --------------------------------------------------------------------------------------------------


def flipped_journal(store: Store, rng: random.Random, cases: int, *, every_bit: bool) -> int:
    """Bits of the journal: with the view nothing changes; without it the batch's events are lost, and no other's.

    No topic's records are lost with it, and no producer id is given out twice.
    """
    path = store.data / JOURNAL
    batches = list(batches_of(path))
    bits = range(path.stat().st_size * 8) if every_bit else rng.sample(range(path.stat().st_size * 8), cases)
    sound = Sound.of(store)
    for bit in bits:
        (hit,) = [batch for batch in batches if batch.position <= bit // 8 < batch.end_position]
        for without_view in (False, True):
            store.restore(without_view=without_view)
            flip(path, bit // 8, bit % 8)
            where = f"bit {bit} of the journal, view {'deleted' if without_view else 'kept'}"
            _try_journal(store, sound, hit if without_view else None, where)
    store.restore()
    return len(bits) * 2


def _try_journal(store: Store, sound: Sound, lost: Batch | None, where: str) -> None:
    lost_keys = [record.key or b"" for record in lost.records] if lost is not None else []
    directory = DataDirectory.open(str(store.data))
    try:
        assert set(directory.topics()) >= {TOPIC, OTHER}, f"{where}: {directory.topics()}"
        assert read_all(directory.log(TOPIC, 0)) == sound.plain, f"{where}: other records are read"
        assert read_all(directory.log(TOPIC, 0), Isolation.READ_COMMITTED) == sound.committed, where
        for name in (TOPIC, OTHER):
            event = directory.groups.committed(GROUP, name, 0)
            is_lost = any(
                key.startswith(b"offset\0" + GROUP.encode() + b"\0" + name.encode()) for key in lost_keys
            )
            assert is_lost or (event is not None and event.offset == 2), f"{where}: {name}: {event}"
        fresh = directory.producer_ids.allocate()
        known = max(
            record_id for record_id in directory.view.partitions.producers(directory.log(TOPIC, 0).key)
        )
        assert fresh > known, f"{where}: producer id {fresh} is given out again: {known} has written records"
    finally:
        directory.close()
