"""What ``verify`` says about damage of each kind, and what ``repair`` makes of it."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import logbroker
from logbroker_storage.aborted_index import AbortedTransaction
from logbroker_storage.aborted_index import encode_entry as encode_aborted
from logbroker_storage.checkpoints import PartitionOffset, encode_partition_offsets
from logbroker_storage.producer_snapshot import ProducerSnapshotEntry
from logbroker_storage.producer_snapshot import encode as encode_snapshot
from logbroker_storage.record_batch import (
    ControlType,
    NewRecord,
    assign,
    encode_batch,
    encode_control_batch,
    encode_values,
    read_header,
)
from logbroker_storage.segment import IndexBuilder
from logbroker_storage.segment_files import snapshot_name
from logbroker_tools.cli import run
from logbroker_tools.findings import Code, Finding, Severity
from logbroker_tools.layout import find
from logbroker_tools.repair import Action, plan, repair_all
from logbroker_tools.verify import verify

NOW_MS = 1_700_000_000_000


class Folder:
    """A log directory with one partition that is built batch by batch."""

    def __init__(self, path: Path) -> None:
        self.logs = path / "logs"
        self.path = self.logs / "t-0"
        self.path.mkdir(parents=True)
        self.end_offset = 0
        self.positions: list[int] = []
        self.roll()

    def roll(self) -> Folder:
        self.log = self.path / f"{self.end_offset:020d}.log"
        self._indexes = IndexBuilder(self.end_offset, 1)
        self.log.touch()
        self._write_indexes()
        return self

    def _write_indexes(self) -> None:
        built = self._indexes.seal()
        self.log.with_suffix(".index").write_bytes(built.offset_index)
        self.log.with_suffix(".timeindex").write_bytes(built.time_index)

    def batch(self, *values: bytes, batch: bytearray | None = None) -> Folder:
        made = encode_values(values, [(0, NOW_MS + self.end_offset)]) if batch is None else batch
        assign(made, self.end_offset, 0)
        position = self.log.stat().st_size
        self.positions.append(position)
        with self.log.open("ab") as file:
            file.write(made)
        header = read_header(made)
        self._indexes.add(position, header)
        self._write_indexes()
        self.end_offset = header.next_offset
        return self

    def of_producer(self, sequence: int, *, epoch: int = 0, count: int = 1) -> Folder:
        records = [NewRecord(b"p", None, (), NOW_MS + self.end_offset)] * count
        made = encode_batch(records, producer_id=9, producer_epoch=epoch, base_sequence=sequence)
        return self.batch(batch=made)

    def torn(self, drop_bytes: int) -> Folder:
        content = self.log.read_bytes()
        self.log.write_bytes(content[:-drop_bytes])
        return self

    def flip(self, position: int, mask: int = 1) -> Folder:
        content = bytearray(self.log.read_bytes())
        content[position] ^= mask
        self.log.write_bytes(content)
        return self

    def recovery_point(self, offset: int) -> Folder:
        points = encode_partition_offsets([PartitionOffset("t", 0, offset)])
        (self.logs / "recovery-point-offset-checkpoint").write_bytes(points)
        return self

    def snapshot(self, offset: int, *entries: ProducerSnapshotEntry) -> Path:
        path = self.path / snapshot_name(offset)
        path.write_bytes(encode_snapshot(entries))
        return path

    def findings(self, severity: Severity = Severity.ERROR, *, kafka: bool = False) -> list[Finding]:
        return [f for f in verify(find(str(self.path), kafka=kafka)) if f.severity is severity]

    def codes(self, severity: Severity = Severity.ERROR) -> list[Code]:
        return [finding.code for finding in self.findings(severity)]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# What becomes of damage depends on the recovery point -----------------------------------------------------


def test_a_torn_tail_above_the_recovery_point_is_cut(folder: Folder) -> None:
    folder.batch(b"a").batch(b"b").torn(drop_bytes=3).recovery_point(1)
    (finding,) = folder.findings()
    assert (finding.code, finding.position, finding.start_offset) == (Code.TRUNCATED, folder.positions[1], 1)
    assert "cut short" in (finding.advice or "")
    assert [step.action for step in plan(find(str(folder.path)))] == [Action.CUT_TAIL]


def test_a_torn_batch_below_the_recovery_point_is_damage_that_stays(folder: Folder) -> None:
    folder.batch(b"a").batch(b"b").torn(drop_bytes=3).recovery_point(2)
    (finding,) = folder.findings()
    assert "cannot be read" in (finding.advice or "")
    assert plan(find(str(folder.path))) == []


def test_damage_above_the_recovery_point_with_batches_behind_warns_of_the_recovery(folder: Folder) -> None:
    folder.batch(b"a").batch(b"b").recovery_point(0).flip(folder.positions[0] + 40)
    (finding,) = folder.findings()
    assert "copy the file first" in (finding.advice or "")
    assert plan(find(str(folder.path))) == []


def test_a_log_that_ends_below_its_recovery_point_has_lost_records(folder: Folder) -> None:
    folder.batch(b"a").recovery_point(3)
    (finding,) = folder.findings()
    assert (finding.code, finding.start_offset, finding.end_offset) == (Code.MISSING_OFFSETS, 1, 3)


def test_the_end_of_a_segment_that_others_follow_is_never_cut(folder: Folder) -> None:
    folder.batch(b"a").batch(b"b")
    first = folder.log
    folder.roll().batch(b"c")
    first.write_bytes(first.read_bytes()[:-3])
    (finding,) = folder.findings()
    assert (finding.path, finding.start_offset, finding.end_offset) == (str(first), 1, 2)
    assert plan(find(str(folder.path))) == []
    assert plan(find(str(first))) == []  # nor when it is given alone


def test_segments_that_overlap_are_reported_and_an_empty_one_is_only_noted(folder: Folder) -> None:
    folder.batch(b"a", b"b", b"c")
    (folder.path / f"{1:020d}.log").touch()
    assert folder.codes() == []
    assert Code.OVERLAP in folder.codes(Severity.NOTE)
    (folder.path / f"{1:020d}.log").write_bytes(folder.log.read_bytes())
    assert Code.OVERLAP in folder.codes()


def test_segments_that_a_compaction_has_replaced_are_passed_over(folder: Folder) -> None:
    folder.batch(b"a").roll().batch(b"b")
    merged = encode_values([b"a", b"b"], [(0, NOW_MS + 1)])
    (folder.path / f"{0:020d}.log").write_bytes(merged)
    (folder.path / f"{0:020d}.replaces").write_bytes(b"1\n")
    indexes = IndexBuilder(0, 1)
    indexes.add(0, read_header(merged))
    (folder.path / f"{0:020d}.timeindex.cleaned").write_bytes(indexes.seal().time_index)
    assert folder.codes() == []
    assert Code.SIDE_FILE in folder.codes(Severity.NOTE)


# Records and headers --------------------------------------------------------------------------------------


def with_crc(batch: bytearray) -> bytearray:
    from logbroker_storage.crc32c import crc32c

    struct.pack_into(">I", batch, 17, crc32c(bytes(batch[21:])))
    return batch


def test_records_that_do_not_parse_are_reported_although_the_checksum_is_right(folder: Folder) -> None:
    batch = encode_values([b"abc"], [(0, NOW_MS)])
    batch[61] ^= 2  # the length of the first record
    folder.batch(batch=with_crc(batch))
    assert folder.codes() == [Code.BAD_RECORDS]


def test_a_record_count_that_the_records_do_not_bear_out_is_reported(folder: Folder) -> None:
    batch = encode_values([b"abc", b"def"], [(0, NOW_MS)])
    struct.pack_into(">i", batch, 57, 1)
    folder.batch(batch=with_crc(batch))
    assert folder.codes() == [Code.BAD_RECORDS]


def test_a_largest_timestamp_that_no_record_has_is_reported(folder: Folder) -> None:
    batch = encode_values([b"abc"], [(0, NOW_MS)])
    struct.pack_into(">q", batch, 35, NOW_MS + 5)
    folder.batch(batch=with_crc(batch))
    assert folder.codes() == [Code.BAD_TIMESTAMP]


def test_a_control_batch_that_is_no_marker_is_reported(folder: Folder) -> None:
    batch = encode_batch([NewRecord(b"v", b"k", (), NOW_MS)], control=True, producer_id=1, producer_epoch=0)
    folder.batch(batch=batch)
    assert folder.codes() == [Code.BAD_RECORDS]


def test_kafkas_control_batches_that_are_of_no_transaction_are_sound(folder: Folder) -> None:
    leader_change = NewRecord(b"\0" * 11, struct.pack(">hh", 0, 2), (), NOW_MS)
    folder.batch(batch=encode_batch([leader_change], control=True))
    assert folder.findings(kafka=True) == []
    assert folder.codes() == [Code.BAD_RECORDS], "ours has no such batches"
    folder.batch(batch=encode_batch([leader_change], control=True, transactional=True))
    assert [finding.start_offset for finding in folder.findings(kafka=True)] == [1]


# Producers ------------------------------------------------------------------------------------------------


def test_sequences_that_go_on_say_nothing(folder: Folder) -> None:
    folder.of_producer(2**31 - 2, count=2).of_producer(0).of_producer(1).of_producer(0, epoch=1)
    assert folder.codes() == folder.codes(Severity.NOTE) == []


def test_sequence_gaps_are_one_note_a_producer(folder: Folder) -> None:
    folder.of_producer(0).of_producer(5).of_producer(6).of_producer(9)
    assert folder.codes() == []
    (note,) = folder.findings(Severity.NOTE)
    assert (note.code, note.position) == (Code.SEQUENCE_GAP, folder.positions[1])
    assert note.message.endswith("1 times more")


@pytest.mark.parametrize(("sequence", "epoch"), [(0, 1), (3, 1), (4, 0)])
def test_a_sequence_or_an_epoch_that_goes_back_is_an_error_in_ours(
    folder: Folder, sequence: int, epoch: int
) -> None:
    folder.of_producer(3, epoch=1).of_producer(sequence, epoch=epoch)
    (finding,) = folder.findings()
    assert (finding.code, finding.position) == (Code.BAD_SEQUENCE, folder.positions[1])
    assert folder.findings(kafka=True) == []


def entry(last_sequence: int, last_offset: int, *, epoch: int = 0) -> ProducerSnapshotEntry:
    return ProducerSnapshotEntry(
        producer_id=9,
        producer_epoch=epoch,
        last_sequence=last_sequence,
        last_offset=last_offset,
        offset_delta=0,
        timestamp_ms=NOW_MS,
    )


def test_a_snapshot_that_says_what_the_batches_say_is_sound(folder: Folder) -> None:
    folder.of_producer(0).of_producer(1).of_producer(2)
    folder.snapshot(2, entry(1, 1))
    folder.snapshot(3, entry(2, 2))
    assert folder.codes() == []


@pytest.mark.parametrize(
    "wrong", [entry(0, 0), entry(7, 1), entry(1, 1, epoch=-1), entry(1, 2), entry(1, 2, epoch=1)]
)
def test_a_snapshot_that_says_something_else_is_reported_and_set_aside(
    folder: Folder, wrong: ProducerSnapshotEntry
) -> None:
    folder.of_producer(0).of_producer(1).of_producer(2)
    path = folder.snapshot(2, wrong)
    content = path.read_bytes()
    assert [(finding.code, finding.path) for finding in folder.findings()] == [(Code.BAD_SNAPSHOT, str(path))]
    repair_all(find(str(folder.path)))
    assert Path(f"{path}.old").read_bytes() == content
    assert folder.codes() == []


def test_a_snapshot_behind_the_end_of_the_log_is_reported(folder: Folder) -> None:
    folder.of_producer(0)
    folder.snapshot(4, entry(0, 0))
    assert folder.codes() == [Code.BAD_SNAPSHOT]


def test_every_flipped_bit_of_a_snapshot_is_reported(folder: Folder) -> None:
    folder.of_producer(0)
    path = folder.snapshot(1, entry(0, 0))
    content = path.read_bytes()
    for bit in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert folder.codes() == [Code.BAD_SNAPSHOT], f"bit {bit}"


# Indexes --------------------------------------------------------------------------------------------------


def test_an_index_that_is_missing_is_a_note_and_is_built(folder: Folder) -> None:
    folder.batch(b"a").batch(b"b")
    index = folder.log.with_suffix(".index")
    content = index.read_bytes()
    index.unlink()
    assert (folder.codes(), folder.codes(Severity.NOTE)) == ([], [Code.MISSING_INDEX])
    (step,) = repair_all(find(str(folder.path)))
    assert (step.action, step.keeps) == (Action.REBUILD_INDEX, None)
    assert folder.codes(Severity.NOTE) == []
    assert len(index.read_bytes()) <= len(content)  # it is as sparse as a broker's default


def test_repair_keeps_the_index_it_replaces_and_touches_no_other(folder: Folder) -> None:
    folder.batch(b"a").batch(b"b")
    index, time_index = folder.log.with_suffix(".index"), folder.log.with_suffix(".timeindex")
    index.write_bytes(b"\xff" * 8)
    before = time_index.read_bytes()
    repair_all(find(str(folder.path)))
    assert Path(f"{index}.old").read_bytes() == b"\xff" * 8
    assert time_index.read_bytes() == before
    assert folder.codes() == []


def test_an_aborted_index_whose_segment_is_lost_is_not_said_to_go(folder: Folder) -> None:
    """It may tell of transactions in the segments before; the other indexes are of no use."""
    folder.batch(b"a").roll().batch(b"b").roll().batch(b"c")
    lost = folder.path / f"{1:020d}.log"
    lost.unlink()
    lost.with_suffix(".txnindex").write_bytes(b"")
    assert folder.codes() == [Code.MISSING_OFFSETS]
    assert [Path(finding.path).suffix for finding in folder.findings(Severity.NOTE)] == [
        ".index",
        ".timeindex",
    ]


def test_indexes_are_judged_behind_damage_too(folder: Folder) -> None:
    folder.batch(b"a").batch(b"b").batch(b"c").flip(folder.positions[1] + 30)
    index = folder.log.with_suffix(".index")
    assert folder.codes() == [Code.BAD_CRC]
    content = bytearray(index.read_bytes())
    content[-1] ^= 1
    index.write_bytes(content)
    assert sorted(code.value for code in folder.codes()) == ["bad-crc", "bad-offset-index"]


def test_an_entry_of_the_txnindex_must_name_an_abort_marker(folder: Folder) -> None:
    folder.of_producer(0)
    folder.batch(
        batch=encode_control_batch(ControlType.ABORT, producer_id=9, producer_epoch=0, timestamp_ms=NOW_MS)
    )
    folder.batch(
        batch=encode_control_batch(ControlType.COMMIT, producer_id=9, producer_epoch=0, timestamp_ms=NOW_MS)
    )
    path = folder.log.with_suffix(".txnindex")
    path.write_bytes(encode_aborted(AbortedTransaction(9, 0, 1, 2)))
    assert folder.codes() == []
    for wrong in (
        AbortedTransaction(8, 0, 1, 2),
        AbortedTransaction(9, 0, 0, 2),
        AbortedTransaction(9, 0, 2, 2),
        AbortedTransaction(9, 2, 1, 2),
        AbortedTransaction(9, 0, 77, 2),
    ):
        path.write_bytes(encode_aborted(wrong))
        assert folder.codes() == [Code.BAD_ABORTED_INDEX], wrong


# Anything at all ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_whatever_is_in_the_files_no_command_fails(
    draw: st.DataObject, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Folder(tmp_path_factory.mktemp("junk"))
    folder.batch(b"a", b"b").of_producer(0).of_producer(1).roll().batch(b"c").of_producer(2).batch(b"d" * 70)
    folder.snapshot(folder.end_offset, entry(2, folder.end_offset - 2))
    folder.log.with_suffix(".txnindex").write_bytes(encode_aborted(AbortedTransaction(9, 4, 5, 5)))
    (folder.path / "partition.metadata").write_bytes(b"version: 0\ntopic_id: AAAAAAAAAAAAAAAAAAAAAQ")
    (folder.path / "leader-epoch-checkpoint").write_bytes(b"0\n1\n0 0\n")
    folder.recovery_point(2)
    (folder.logs / "meta.properties").write_bytes(b"version=1\nlogbroker.format=1\n")
    names = sorted(path for path in folder.logs.rglob("*") if path.is_file())
    for _ in range(draw.draw(st.integers(1, 5))):
        path = draw.draw(st.sampled_from(names))
        content = bytearray(path.read_bytes())
        at = draw.draw(st.integers(0, len(content)))
        junk = draw.draw(
            st.one_of(st.binary(max_size=40), st.sampled_from([bytes(100), b"\xff" * 20, b"\2" * 90]))
        )
        kind = draw.draw(st.sampled_from(["overwrite", "insert", "cut", "remove", "flip"]))
        if kind == "overwrite":
            content[at : at + len(junk)] = junk
        elif kind == "insert":
            content[at:at] = junk
        elif kind == "flip" and at < len(content):
            content[at] ^= 1 << draw.draw(st.integers(0, 7))
        else:
            del content[at : at + (len(junk) if kind == "remove" else len(content))]
        path.write_bytes(content)
    kafka = ["--kafka"] if draw.draw(st.booleans()) else []
    target = str(folder.logs)
    assert run(["verify", target, *kafka]) in (0, 1)
    for command in (
        ["summary"],
        ["segments"],
        ["dump"],
        ["dump", "--records"],
        ["export"],
        ["producers"],
        ["repair"],
    ):
        assert run([*command, target, *kafka]) == 0, command
    before = {path: path.read_bytes() for path in folder.logs.rglob("*") if path.is_file()}
    assert run(["repair", "--write", target, *kafka]) == 0
    assert run(["repair", target, *kafka]) == 0
    assert capsys.readouterr().out.endswith("nothing to repair\n")
    kept = b"".join(path.read_bytes() for path in folder.logs.rglob("*") if path.is_file())
    for (
        path,
        content,
    ) in before.items():  # no byte is lost: each file is still there, or in parts, or a side file
        after = path.read_bytes() if path.exists() else b""
        assert content in (after, *[p.read_bytes() for p in folder.path.iterdir()]) or (
            content.startswith(after) and content[len(after) :] in kept
        )


# A broker's own directory ---------------------------------------------------------------------------------


def test_repair_does_not_write_while_a_broker_has_the_directory_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("t", partitions=1)
        assert run(["verify", str(data)]) == 0
        assert run(["repair", str(data)]) == 0
        assert run(["repair", "--write", str(data)]) == 1
        assert "open" in capsys.readouterr().err
    assert run(["repair", "--write", str(data)]) == 0


@pytest.mark.parametrize("linked", ["", "logs", "logs/t-0", "logs/t-0/00000000000000000000.log"])
def test_repair_finds_the_locks_of_what_a_link_leads_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], linked: str
) -> None:
    link = tmp_path / "elsewhere" / "t-0.log"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "data" / linked)
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("t", partitions=1)
        assert run(["repair", "--write", str(link)]) == 1
        assert " open; close it, then repair" in capsys.readouterr().err
    assert run(["repair", "--write", str(link)]) == 0


def test_repair_does_not_write_under_kafkas_broker(tmp_path: Path) -> None:
    folder = Folder(tmp_path).batch(b"a").torn(3)
    torn = folder.log.read_bytes()
    java_has_it_open = f"""
import fcntl
file = open({str(folder.logs / ".lock")!r}, "wb")
fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", java_has_it_open], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as broker:
        assert broker.stdout is not None
        assert broker.stdout.readline() == b"\n"
        assert run(["repair", "--write", "--kafka", str(folder.logs)]) == 1
        assert folder.log.read_bytes() == torn
        broker.communicate(b"\n")
    assert run(["repair", "--write", "--kafka", str(folder.logs)]) == 0
    assert folder.log.read_bytes() == b""


def test_a_broker_goes_on_in_a_directory_that_was_repaired(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("t", partitions=1)
        with broker.producer() as producer:
            for number in range(20):
                producer.send("t", b"%d" % number).result(timeout=10)
    log = data / "logs" / "t-0" / f"{0:020d}.log"
    log.write_bytes(log.read_bytes() + b"\1" * 33)
    log.with_suffix(".timeindex").write_bytes(b"\xff" * 12)
    assert run(["verify", str(data)]) == 1
    assert run(["repair", "--write", str(data)]) == 0
    assert run(["verify", str(data)]) == 0
    with logbroker.open(data) as broker:
        with broker.producer() as producer:
            producer.send("t", b"20").result(timeout=10)
        with broker.consumer("t", start="earliest") as consumer:
            assert [record.value for record in consumer.poll(100, timeout=5)] == [
                b"%d" % n for n in range(21)
            ]
    assert run(["verify", str(data)]) == 0


def test_a_segment_that_cannot_be_read_hides_no_other_finding(tmp_path: Path) -> None:
    folder = Folder(tmp_path).batch(b"a").roll().batch(b"b").roll().batch(b"c")
    first, second, third = sorted(folder.path.glob("*.log"))
    second.unlink()
    second.mkdir()
    damaged = bytearray(third.read_bytes())
    damaged[-1] ^= 1
    third.write_bytes(damaged)
    found = {(f.path, f.code, f.start_offset) for f in folder.findings()}
    assert found >= {(str(second), Code.UNREADABLE, 1), (str(third), Code.BAD_CRC, 2)}
    assert not any(f.path == str(first) for f in folder.findings())
    assert run(["verify", str(tmp_path)]) == 1


def test_what_meta_properties_says_can_be_overruled_both_ways(tmp_path: Path) -> None:
    folder = Folder(tmp_path).batch(b"a")
    meta = folder.logs / "meta.properties"
    meta.write_bytes(b"version=1\n")
    assert [find(str(tmp_path), kafka=kafka).is_ours for kafka in (None, False, True)] == [False, True, False]
    assert run(["verify", "--logbroker", str(tmp_path)]) == 0


def test_in_a_log_of_kafkas_an_offset_that_no_segment_can_hold_is_damage(tmp_path: Path) -> None:
    folder = Folder(tmp_path).batch(b"a").batch(b"b")
    content = bytearray(folder.log.read_bytes())
    content[folder.positions[-1]] ^= 1  # the highest byte of the base offset
    folder.log.write_bytes(content)
    assert Code.BAD_OFFSET in {finding.code for finding in folder.findings(kafka=True)}
    assert run(["repair", "--write", "--kafka", str(folder.logs)]) == 0
