"""``verify`` reports whatever is wrong with its place, and goes on behind it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import logbroker
from logbroker_storage.files import OsFiles
from logbroker_storage.record_batch import (
    Compression,
    NewRecord,
    encode_batch,
    encode_control_batch,
    encode_values,
    read_header,
)
from logbroker_storage.segment import rebuild_indexes
from logbroker_tools.cli import run
from logbroker_tools.findings import Code, Finding, Severity
from logbroker_tools.layout import find
from logbroker_tools.reading import segment_items
from logbroker_tools.verify import verify
from logbroker_tools.walk import Sound

NOW_MS = 1_700_000_000_000


def batches() -> list[bytes]:
    """Batches of different kinds that tile the offset space from 0."""
    made = [
        encode_values([b"a", b"bb", None], [(0, NOW_MS)]),
        encode_batch([NewRecord(b"v", b"k", (("h", b"x"), ("n", None)), NOW_MS + 1)]),
        encode_batch(
            [NewRecord(b"z" * 50, b"k%d" % n, (), NOW_MS + 2 + n) for n in range(4)],
            compression=Compression.GZIP,
            producer_id=7,
            producer_epoch=0,
            base_sequence=0,
        ),
        encode_values([b"last", b"one"], [(0, NOW_MS + 9)]),
    ]
    offset, placed = 0, []
    for batch in made:
        data = bytearray(batch)
        data[:8] = offset.to_bytes(8, "big")
        placed.append(bytes(data))
        offset = read_header(data).next_offset
    return placed


def write_partition(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "00000000000000000000.log"
    path.write_bytes(content)
    return path


def errors(path: Path) -> list[Finding]:
    return [finding for finding in verify(find(str(path))) if finding.severity is Severity.ERROR]


@pytest.mark.parametrize("cut", [1, 60, 61, 70])
def test_a_torn_tail_is_reported_as_such(tmp_path: Path, cut: int) -> None:
    content = b"".join(batches())
    path = write_partition(tmp_path / "t-0", content[:-cut])
    (finding,) = errors(path.parent)
    assert finding.code in (Code.TRUNCATED, Code.BAD_CRC)
    assert finding.position == len(content) - len(batches()[-1])
    assert "side file" in (finding.advice or "")


def test_zeros_behind_the_last_batch_are_noted_and_no_error(tmp_path: Path) -> None:
    content = b"".join(batches())
    path = write_partition(tmp_path / "t-0", content + bytes(4096))
    (finding,) = [found for found in verify(find(str(path.parent))) if found.code is Code.ZEROS]
    assert (finding.severity, finding.position) == (Severity.NOTE, len(content))
    assert errors(path.parent) == []


def test_what_a_writer_puts_in_its_room_meanwhile_is_no_damage(tmp_path: Path) -> None:
    first, second, third, _ = batches()
    path = write_partition(tmp_path / "t-0", first + bytes(4096))
    (partition,) = find(str(path.parent)).partitions
    items = segment_items(partition, partition.segments[0])
    assert isinstance(next(items), Sound)
    with path.open("r+b") as file:
        file.seek(len(first))
        file.write(second + third)
    found = [item.header.base_offset for item in items if isinstance(item, Sound)]
    assert found == [read_header(second).base_offset, read_header(third).base_offset]


def test_what_a_writer_appends_meanwhile_is_not_called_room(tmp_path: Path) -> None:
    first, second, *_ = batches()
    content = bytearray(first)
    content[0] = 1  # a finding to stop at, with the file open
    path = write_partition(tmp_path / "t-0", bytes(content) + second)
    findings = verify(find(str(path.parent)))
    assert next(findings).code is Code.BAD_OFFSET
    with path.open("ab") as file:
        file.write(first)
    assert Code.ZEROS not in {finding.code for finding in findings}


@pytest.mark.parametrize("at", [0, 60, 61, 4095])
def test_a_bit_in_the_zeros_behind_the_last_batch_is_reported(tmp_path: Path, at: int) -> None:
    content = b"".join(batches())
    room = bytearray(4096)
    room[at] = 0x10
    path = write_partition(tmp_path / "t-0", content + bytes(room))
    (finding,) = errors(path.parent)
    assert finding.position == len(content)


def test_zeros_at_the_end_of_a_segment_that_another_follows_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "t-0"
    content = b"".join(batches())
    write_partition(folder, content + bytes(4096))
    (folder / "00000000000000000010.log").touch()
    found = [finding for finding in errors(folder) if finding.code is Code.ZEROS]
    assert [finding.position for finding in found] == [len(content)]


def test_offsets_missing_between_two_segments_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "t-0"
    write_partition(folder, b"".join(batches()))
    second = bytearray(encode_values([b"x"], [(0, NOW_MS)]))
    second[:8] = (15).to_bytes(8, "big")
    (folder / "00000000000000000015.log").write_bytes(second)
    (finding,) = errors(folder)
    assert (finding.code, finding.start_offset, finding.end_offset) == (Code.MISSING_OFFSETS, 10, 15)


def test_gaps_and_epochs_are_no_damage_in_a_log_of_kafkas(tmp_path: Path) -> None:
    made = batches()
    first, last = bytearray(made[0]), bytearray(made[3])
    last[12:16] = (5).to_bytes(4, "big")
    path = write_partition(tmp_path / "t-0", bytes(first + last))
    assert errors(path.parent)
    assert [f for f in verify(find(str(path.parent), kafka=True)) if f.severity is Severity.ERROR] == []


def test_control_batches_are_sound(tmp_path: Path) -> None:
    from logbroker_storage.record_batch import ControlType

    marker = encode_control_batch(ControlType.COMMIT, producer_id=3, producer_epoch=0, timestamp_ms=NOW_MS)
    path = write_partition(tmp_path / "t-0", bytes(marker))
    assert errors(path.parent) == []


@pytest.mark.parametrize("suffix", [".index", ".timeindex"])
def test_every_flipped_bit_of_an_index_is_reported(tmp_path: Path, suffix: str) -> None:
    path = write_partition(tmp_path / "t-0", b"".join(batches()))
    rebuild_indexes(OsFiles(), str(path.parent), 0, path.stat().st_size, 10)
    assert errors(path.parent) == []
    index = path.with_suffix(suffix)
    content = index.read_bytes()
    assert content
    for bit in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        index.write_bytes(damaged)
        assert {Path(finding.path) for finding in errors(path.parent)} == {index}, f"bit {bit}"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_never_makes_it_fail(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(b"".join(batches()))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content)))
        junk = data.draw(st.binary(max_size=80))
        if data.draw(st.booleans()):
            content[at : at + len(junk)] = junk
        else:
            content[at:at] = junk
    path = write_partition(tmp_path / "t-0", bytes(content))
    list(verify(find(str(path.parent))))
    list(verify(find(str(path))))


@pytest.fixture
def data_directory(tmp_path: Path) -> Path:
    """A directory that the broker made: topics, a group, a named producer, several segments."""
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("t", partitions=2, config={"segment.bytes": 3000})
        with broker.producer(name="loader") as producer:
            for number in range(200):
                producer.send("t", b"%d" % number * 10, partition=0, sequence=number)
                if number % 10 == 9:
                    producer.flush()
        with broker.consumer("t", group="g", start="earliest") as consumer:
            consumer.poll(50, timeout=2.0)
            consumer.commit()
    return data


def test_a_directory_of_the_brokers_is_sound(
    data_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(data_directory)]) == 0
    assert capsys.readouterr().out == "partitions checked: 3, errors: 0, notes: 0\n"


def test_damage_makes_verify_exit_with_1_and_name_the_place(
    data_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = sorted((data_directory / "logs" / "t-0").glob("*.log"))[1]
    content = bytearray(segment.read_bytes())
    content[100] ^= 1
    segment.write_bytes(content)
    assert run(["verify", str(data_directory), "--json"]) == 1
    finding = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (finding["severity"], finding["code"], finding["path"]) == ("error", "bad-crc", str(segment))
    assert finding["position"] == 0


def a_directory_instead(path: Path) -> None:
    """Put what cannot be read where the file *path* is, for whoever runs the tests."""
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.parametrize("suffix", [".index", ".timeindex", ".txnindex", ".snapshot", ".checksums"])
def test_a_file_beside_a_segment_that_cannot_be_read_hides_nothing_else(
    data_directory: Path, suffix: str
) -> None:
    segments = sorted((data_directory / "logs" / "t-0").glob("*.log"))
    unreadable = segments[1].with_suffix(suffix)
    a_directory_instead(unreadable)
    content = bytearray(segments[1].read_bytes())
    content[100] ^= 1
    segments[1].write_bytes(content)
    metadata = data_directory / "logs" / "t-1" / "partition.metadata"
    a_directory_instead(metadata)
    assert {(finding.path, finding.code) for finding in errors(data_directory)} == {
        (str(unreadable), Code.UNREADABLE),
        (str(segments[1]), Code.BAD_CRC),
        (str(metadata), Code.UNREADABLE),
    }
    assert run(["producers", str(data_directory)]) == 0


@pytest.mark.parametrize("name", ["meta.properties", "recovery-point-offset-checkpoint"])
def test_a_link_that_leads_nowhere_is_a_file_that_cannot_be_read(data_directory: Path, name: str) -> None:
    path = data_directory / "logs" / name
    path.unlink()
    path.symlink_to(data_directory / "gone")
    assert [(finding.path, finding.code) for finding in errors(data_directory)] == [
        (str(path), Code.UNREADABLE)
    ]


def test_a_segment_that_cannot_be_read_is_told_and_the_others_are_shown(
    data_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segments = sorted((data_directory / "logs" / "t-0").glob("*.log"))
    a_directory_instead(segments[1])
    missing = int(segments[2].stem) - int(segments[1].stem)
    assert [(finding.path, finding.code) for finding in errors(data_directory)] == [
        (str(segments[1]), Code.UNREADABLE)
    ]
    told = f"logbroker-inspect: {segments[1]} cannot be read: Is a directory\n"
    for command in ("producers", "transactions", "export", "dump", "segments", "summary"):
        assert run([command, "--topic", "t", "--json", str(data_directory)]) == 0
        captured = capsys.readouterr()
        assert captured.err == told
        if command == "export":
            assert len(captured.out.splitlines()) == 200 - missing
    assert [(row["records"], row["damaged_places"]) for row in json.loads(captured.out)] == [
        (200 - missing, 1),
        (0, 0),
    ]


@pytest.mark.parametrize("command", ["offsets", "journal", "subscriptions", "producers", "transactions"])
def test_what_is_damaged_in_the_journal_is_told_with_what_it_still_says(
    data_directory: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (journal,) = (data_directory / "logs" / "__journal-0").glob("*.log")
    with journal.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert run([command, str(data_directory)]) == 0
    assert capsys.readouterr().err.count(f"logbroker-inspect: {journal} is damaged at byte ") == 1


def test_the_commands_say_what_is_there(data_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def output(*arguments: str) -> object:
        assert run([*arguments, str(data_directory), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    summary = output("summary")
    assert [(row["topic"], row["partition"], row["records"]) for row in summary] == [  # type: ignore[attr-defined]
        ("__journal", 0, summary[0]["records"]),  # type: ignore[index]
        ("t", 0, 200),
        ("t", 1, 0),
    ]
    offsets = output("offsets")
    assert [(row["group"], row["topic"], row["partition"], row["offset"]) for row in offsets] == [  # type: ignore[attr-defined]
        ("g", "t", 0, 50)
    ]
    (producer,) = output("producers")  # type: ignore[misc]
    assert (producer["name"], producer["last_sequence"], producer["last_offset"]) == ("loader", 199, 199)
    assert len(output("segments")) > 3  # type: ignore[arg-type]


def test_records_come_out_as_json_lines(data_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(data_directory), "--topic", "t", "--from-offset", "5", "--to-offset", "8"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["offset"], line["value"]) for line in lines] == [(n, str(n) * 10) for n in (5, 6, 7)]


def test_repair_cuts_a_torn_tail_keeps_it_and_finds_nothing_the_second_time(
    data_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = max((data_directory / "logs" / "t-0").glob("*.log"))
    sound = segment.read_bytes()
    segment.write_bytes(sound + b"\1" * 77)
    index = segment.with_suffix(".timeindex")
    index.write_bytes(index.read_bytes() + b"junk")
    assert run(["repair", str(data_directory)]) == 0
    assert segment.read_bytes() == sound + b"\1" * 77  # a plan changes nothing
    assert run(["repair", str(data_directory), "--write"]) == 0
    assert segment.read_bytes() == sound
    assert Path(f"{segment}.cut-{len(sound)}").read_bytes() == b"\1" * 77
    assert Path(f"{index}.old").read_bytes().endswith(b"junk")
    assert run(["verify", str(data_directory)]) == 0
    capsys.readouterr()
    assert run(["repair", str(data_directory), "--write"]) == 0
    assert capsys.readouterr().out == "nothing to repair\n"


def test_repair_mends_an_index_and_the_checksums_of_its_segment_in_one_go(
    data_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = min((data_directory / "logs" / "t-0").glob("*.timeindex"))
    checksums = index.with_suffix(".checksums")
    sound = index.read_bytes(), checksums.read_bytes()
    for path, content in zip((index, checksums), sound, strict=True):
        path.write_bytes(content + b"junk")
    assert run(["repair", str(data_directory), "--write"]) == 0
    assert run(["verify", str(data_directory)]) == 0
    for path, content in zip((index, checksums), sound, strict=True):
        assert Path(f"{path}.old").read_bytes() == content + b"junk"


def test_repair_mends_the_rest_where_the_last_segment_cannot_be_read(
    data_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segments = sorted((data_directory / "logs" / "t-0").glob("*.log"))
    a_directory_instead(segments[-1])
    indexes = [segment.with_suffix(".timeindex") for segment in (segments[0], segments[-1])]
    for index in indexes:
        index.write_bytes(b"junk")
    assert run(["repair", str(data_directory), "--write"]) == 0
    assert Path(f"{indexes[0]}.old").read_bytes() == b"junk"
    assert indexes[1].read_bytes() == b"junk"  # nobody knows better
    capsys.readouterr()
    assert run(["repair", str(data_directory)]) == 0
    assert capsys.readouterr().out == "nothing to repair\n"


@pytest.mark.parametrize("name", ["logs/meta.properties", "logs/recovery-point-offset-checkpoint", "lock"])
def test_nobody_waits_at_a_fifo(data_directory: Path, name: str) -> None:
    path = data_directory / name
    path.unlink()
    os.mkfifo(path)
    assert run(["verify", str(data_directory)]) == (0 if name == "lock" else 1)
    assert run(["repair", "--write", str(data_directory)]) == (1 if name == "lock" else 0)


def test_a_side_file_of_recoverys_is_a_note(data_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segment = min((data_directory / "logs" / "t-0").glob("*.log"))
    Path(f"{segment}.cut-17").write_bytes(b"x")
    assert run(["verify", str(data_directory)]) == 0
    assert "note: " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["verify", "/nothing/there"], ["summary", os.devnull]])
def test_what_cannot_be_inspected_is_one_line_on_stderr(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--no-such-option"]) == 2
    assert run(["nonsense"]) == 2
