"""Segments that other implementations wrote are sound: kafka-python's and aiokafka's builders, Java's bytes."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder as AioBuilder
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy as AioPlainBuilder

from logbroker_storage.record_batch import assign, read_header
from logbroker_tools.cli import run
from logbroker_tools.findings import Severity
from logbroker_tools.layout import find
from logbroker_tools.verify import verify

with warnings.catch_warnings():  # kafka-python reads its schemas in a way that Python deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.record.default_records import DefaultRecordBatchBuilder as KafkaBuilder

T0 = 1_700_000_000_000
BUILDERS = {"aiokafka": AioBuilder, "aiokafka-plain": AioPlainBuilder, "kafka-python": KafkaBuilder}
GOLDEN = Path(__file__).parent.parent / "golden" / "kafka_batches.jsonl"


def built(
    builder: Callable[..., object], codec: int, *, producer_id: int = -1, sequence: int = -1
) -> bytearray:
    batch = builder(  # type: ignore[operator]
        magic=2,
        compression_type=codec,
        is_transactional=False,
        producer_id=producer_id,
        producer_epoch=0 if producer_id >= 0 else -1,
        base_sequence=sequence,
        batch_size=1 << 20,
    )
    for offset in range(20):
        batch.append(
            offset, timestamp=T0 + offset * 7 % 5, key=b"k%d" % offset, value=b"v" * offset, headers=[]
        )  # type: ignore[attr-defined]
    return bytearray(batch.build())  # type: ignore[attr-defined]


def write_segment(folder: Path, batches: list[bytearray], *, gap: int = 0, epoch: int = 0) -> Path:
    folder.mkdir(parents=True)
    offset = 0
    for number, batch in enumerate(batches):
        assign(batch, offset, epoch + number if epoch else 0)
        offset = read_header(batch).next_offset + gap
    path = folder / f"{0:020d}.log"
    path.write_bytes(b"".join(batches))
    return path


@pytest.mark.parametrize("name", BUILDERS)
def test_what_kafkas_python_clients_build_is_sound(tmp_path: Path, name: str) -> None:
    batches = [built(BUILDERS[name], codec) for codec in (0, 1, 3)]
    batches += [built(BUILDERS[name], 0, producer_id=5, sequence=20 * number) for number in range(3)]
    path = write_segment(tmp_path / "t-0", batches)
    notes = [finding for finding in verify(find(str(path))) if finding.severity is Severity.NOTE]
    assert (run(["verify", str(path)]), notes) == (0, [])


def test_a_log_directory_of_kafkas_is_known_by_its_meta_properties(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_segment(tmp_path / "t-0", [built(AioBuilder, 0) for _ in range(4)], gap=10, epoch=3)
    path.with_suffix(".index").write_bytes(bytes(80))  # allocated in advance
    path.with_suffix(".timeindex").write_bytes(bytes(120))
    assert run(["verify", str(tmp_path / "t-0")]) == 1  # nothing says that it is not ours
    (tmp_path / "meta.properties").write_bytes(
        b"#\nversion=1\ncluster.id=AAAAAAAAAAAAAAAAAAAAAQ\nnode.id=1\n"
    )
    for target in (tmp_path, tmp_path / "t-0", path):
        assert run(["verify", str(target)]) == 0, capsys.readouterr()
    capsys.readouterr()
    assert run(["summary", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["topic"], row["records"], row["end_offset"]) == ("t", 80, 110)


def test_what_javas_kafka_wrote_is_sound(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    encoded = [
        next(line[field] for field in line if field in ("batch", "bytes", "base64", "hex")) for line in lines
    ]
    batches = [
        bytearray(bytes.fromhex(text) if set(text) <= set("0123456789abcdef") else base64.b64decode(text))
        for text in encoded
    ]
    assert batches
    for number, batch in enumerate(batches):
        path = write_segment(tmp_path / f"t-{number}", [batch])
        errors = [
            finding for finding in verify(find(str(path), kafka=True)) if finding.severity is Severity.ERROR
        ]
        assert errors == [], lines[number]
