"""Behind a recovery ``verify`` finds no error, whichever file beside a log had been damaged, and how."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from logbroker_storage.log_offsets import Isolation
from logbroker_storage.record_batch import ControlType, decode_records, encode_values
from logbroker_storage.testing import Workbench
from logbroker_storage.testing.manual_clock import START_MS
from logbroker_tools.findings import Severity
from logbroker_tools.layout import find
from logbroker_tools.verify import verify

SEALED, ACTIVE = f"{0:020d}", f"{7:020d}"
FILES = [
    *(base + suffix for base in (SEALED, ACTIVE) for suffix in (".index", ".timeindex", ".txnindex")),
    *(base + ".checksums" for base in (SEALED, ACTIVE)),
    f"{7:020d}.snapshot", f"{14:020d}.snapshot",
    "partition.metadata", "leader-epoch-checkpoint", "../recovery-point-offset-checkpoint",
]  # fmt: skip
DAMAGE: dict[str, Callable[[Path], None]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "torn": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped": lambda path: path.write_bytes(_flipped(path.read_bytes())),
    "missing": os.unlink,
}


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments with indexes of all three kinds, left by a clean close."""
    bench = Workbench(str(tmp_path_factory.mktemp("closed") / "data"), index_interval_bytes=0)
    for epoch in range(2):
        for number in range(4):
            bench.put(b"plain", timestamp_ms=START_MS + 10 * epoch + number)
        for sequence in range(2):
            batch = encode_values(
                [b"aborted"],
                [(0, START_MS + 10 * epoch + 5)],
                producer_id=7,
                producer_epoch=epoch,
                base_sequence=sequence,
                transactional=True,
            )
            bench.log.append(batch)
        bench.log.append_marker(ControlType.ABORT, producer_id=7, marker_epoch=epoch + 1)
        bench.log.sync()
        if epoch == 0:
            bench.log.roll_now()
    bench.close()
    assert set(FILES) <= {*os.listdir(bench.folder), "../recovery-point-offset-checkpoint"}
    return Path(bench.path)


def committed(bench: Workbench) -> list[bytes | None]:
    reader = bench.log.reader(0, Isolation.READ_COMMITTED)
    try:
        batches = iter(reader.read, [])
        return [
            record.value
            for found in batches
            for batch in found
            if not batch.header.is_control
            for record in decode_records(batch)
        ]
    finally:
        reader.close()


def check_behind_recovery(data: Path) -> None:
    shutil.rmtree(data / "view")
    bench = Workbench(str(data))
    assert committed(bench) == [b"plain"] * 8
    assert bench.log.offset_for_timestamp(START_MS + 13) == 10
    bench.put(b"plain")
    bench.close()
    found = [finding for finding in verify(find(str(data))) if finding.severity is Severity.ERROR]
    assert found == []


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_verify_is_clean_behind_the_recovery_of(tmp_path: Path, closed: Path, name: str, damage: str) -> None:
    data = shutil.copytree(closed, tmp_path / "data")
    path = data / "logs" / "t-0" / name
    before = path.read_bytes()
    DAMAGE[damage](path)
    check_behind_recovery(data)
    if name.endswith((".snapshot", "partition.metadata")) and damage != "missing":
        kept = path.with_name(path.name + ".old")
        assert kept.exists(), "what was damaged is kept"
        assert path.name.endswith(".snapshot") or path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"7\n", b"\xff"])
def test_verify_is_clean_behind_a_list_of_replaced_segments_that_nobody_needs(
    tmp_path: Path, closed: Path, content: bytes
) -> None:
    data = shutil.copytree(closed, tmp_path / "data")
    (data / "logs" / "t-0" / f"{SEALED}.replaces").write_bytes(content)
    check_behind_recovery(data)
