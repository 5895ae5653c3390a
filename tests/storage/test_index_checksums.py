"""Damaged indexes: what they say is found in the batches, whatever they say instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from logbroker_storage import index_checksums
from logbroker_storage.cleaner import segment_infos
from logbroker_storage.index_checksums import Checksum, IndexChecksums
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import ControlType, decode_records, encode_values
from logbroker_storage.testing import Workbench
from logbroker_storage.testing.manual_clock import START_MS
from logbroker_tools.cli import run

SUMS = IndexChecksums(Checksum(8, 1), Checksum(24, 2), Checksum(0, 0))


def test_the_documented_table_is_the_struct():
    rows = re.findall(r"^ +(\d+) +(\d+)  \w+ +uint(\d+)", str(index_checksums.__doc__), re.MULTILINE)
    assert [int(at) for at, _, _ in rows] == list(range(0, index_checksums.LAYOUT.size, 4))


def test_what_is_encoded_parses_back_and_no_flipped_bit_does():
    encoded = index_checksums.encode(SUMS)
    assert index_checksums.parse(encoded) == SUMS
    for bit in range(len(encoded) * 8):
        changed = bytearray(encoded)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            index_checksums.parse(bytes(changed))


def test_only_what_may_have_grown_is_believed_with_something_behind():
    checksum = Checksum.of(b"entry")
    assert checksum.vouches_for(b"entry", may_have_grown=False)
    assert checksum.vouches_for(b"entry, another", may_have_grown=True)
    assert not checksum.vouches_for(b"entry, another", may_have_grown=False)
    assert not checksum.vouches_for(b"entr", may_have_grown=True)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """An aborted transaction and times that grow, in a sealed segment that another follows."""
    bench = Workbench(str(tmp_path / "data"), index_interval_bytes=100)
    for number in range(20):
        bench.put(b"%d" % number * 30, timestamp_ms=START_MS + 10 * number)
    log = bench.log
    aborted = encode_values(
        [b"aborted"], [(0, START_MS)], producer_id=7, producer_epoch=0, base_sequence=0, transactional=True
    )
    log.append(aborted)
    log.append_marker(ControlType.ABORT, producer_id=7, marker_epoch=1)
    log.sync()
    log.roll_now()
    bench.put(b"last", timestamp_ms=START_MS + 1000)
    return bench


def committed(bench: Workbench) -> list[bytes | None]:
    reader = bench.log.reader(0, Isolation.READ_COMMITTED)
    found: list[bytes | None] = []
    while batches := reader.read():
        found += [r.value for b in batches if not b.header.is_control for r in decode_records(b)]
    reader.close()
    return found


@pytest.mark.parametrize("without_view", [False, True])
@pytest.mark.parametrize("damage", ["cut", "flipped", "grown"])
@pytest.mark.parametrize("suffix", [".index", ".timeindex", ".txnindex"])
def test_a_damaged_index_of_a_sealed_segment_changes_no_answer(
    bench: Workbench, suffix: str, damage: str, without_view: bool
):
    expected = committed(bench)
    assert b"aborted" not in expected
    newest_ms = segment_infos(bench.log)[0].max_timestamp_ms
    bench.close()
    path = Path(bench.folder, f"{0:020d}{suffix}")
    content = path.read_bytes()
    size = {".index": 8, ".timeindex": 12, ".txnindex": 34}[suffix]
    flipped = bytearray(content)
    flipped[9 if suffix == ".txnindex" else len(content) - 1] ^= 1
    changed = {"cut": content[:-size], "flipped": bytes(flipped), "grown": content + b"\x7f" * size}
    path.write_bytes(changed[damage])
    assert run(["verify", bench.path]) == 1
    bench.reopen(without_view=without_view)
    assert committed(bench) == expected
    for number in range(20):
        assert bench.log.offset_for_timestamp(START_MS + 10 * number - 5) == number
    # Retention must not take it for older than it is.
    assert segment_infos(bench.log)[0].max_timestamp_ms == newest_ms
    bench.close()
    if without_view:
        assert path.read_bytes() == content, "recovery builds it again"
        assert run(["verify", bench.path]) == 0


@pytest.mark.parametrize("suffix", [".index", ".timeindex", ".checksums"])
def test_repair_sets_them_right(bench: Workbench, suffix: str):
    bench.close()
    path = Path(bench.folder, f"{0:020d}{suffix}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run(["verify", bench.path]) == 1
    assert run(["repair", "--write", bench.path]) == 0
    assert run(["verify", bench.path]) == 0
    assert Path(f"{path}.old").read_bytes() == content


def test_what_was_appended_behind_a_clean_close_is_believed_too(bench: Workbench):
    bench.reopen()
    bench.put(b"more", timestamp_ms=START_MS + 2000)
    bench.crash()
    bench.open()
    assert bench.log.offset_for_timestamp(START_MS + 1500) == 23
    assert committed(bench)[-1] == b"more"
    bench.close()
    assert run(["verify", bench.path]) == 0
