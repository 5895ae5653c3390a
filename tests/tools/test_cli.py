"""What the commands print, in which shape, and how they end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import logbroker
from logbroker_storage.record_batch import NewRecord, encode_batch, stamp_append_time
from logbroker_storage.testing import LogBuilder
from logbroker_tools.cli import run

COMMAND = [sys.executable, "-m", "logbroker_tools.cli"]
EVERY_COMMAND = [
    "summary",
    "segments",
    "dump",
    "verify",
    "producers",
    "offsets",
    "journal",
    "repair",
    "export",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "data"
    with logbroker.open(path) as broker:
        broker.create_topic("t", partitions=1)
        with broker.producer() as producer:
            producer.send("t", b"text\tand\nmore\x1b[31m", key=b"k", headers=[("h", b"\xff")]).result(
                timeout=10
            )
            producer.send("t", b"\xff\xfe").result(timeout=10)
        with broker.consumer("t", group="g", start="earliest") as consumer:
            consumer.poll(10, timeout=5)
            consumer.commit()
        broker.delete_group("g")
    return path


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert run(list(arguments)) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_every_command_prints_json_or_lines_and_changes_nothing(
    data: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.rglob("*") if path.is_file()
    }
    lines(capsys, command, str(data))
    out = "\n".join(lines(capsys, command, str(data), "--json"))
    try:
        json.loads(out or "[]")
    except json.JSONDecodeError:
        assert all(isinstance(json.loads(line), dict) for line in out.splitlines())
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before}


def test_on_a_pipe_a_row_is_a_line_of_tabs_whatever_records_hold(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line.split("\t") for line in lines(capsys, "dump", "--records", "--topic", "t", str(data))]
    assert [(row[2], row[4], row[5], row[6]) for row in rows] == [
        ("0", "k", "text\\tand\\nmore\\x1b[31m", "h=\\xff"),
        ("1", "-", "\\xff\\xfe", ""),
    ]


def test_bytes_that_are_not_utf_8_are_base64_and_say_so(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = map(json.loads, lines(capsys, "export", str(data)))
    assert (first["value"], first["headers"]) == (
        "text\tand\nmore\x1b[31m",
        [{"key": "h", "value": "/w==", "encoding": "base64"}],
    )
    assert (second["key"], second["value"], second["encoding"]) == (None, "//4=", "base64")


def test_a_deleted_key_is_a_journal_event_without_contents(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [json.loads(line) for line in lines(capsys, "journal", "--json", str(data))]
    assert [event["offset"] for event in events] == list(range(len(events)))
    assert {"kind": "topic", "name": "t"}.items() <= events[0]["event"].items()
    assert any(event["event"] is None and event["key"].startswith("offset\0g\0") for event in events)
    assert json.loads("\n".join(lines(capsys, "offsets", "--json", str(data)))) == []


def test_batches_are_filtered_by_offset_and_time(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def offsets(*filters: str) -> list[int]:
        found = lines(capsys, "dump", "--json", "--topic", "t", *filters, str(data))
        return [json.loads(line)["base_offset"] for line in found]

    assert offsets() == [0, 1]
    assert (offsets("--from-offset", "1"), offsets("--to-offset", "1")) == ([1], [0])
    assert offsets("--since", "2001-01-01") == [0, 1]


def test_a_batch_is_kept_if_any_of_its_records_is_older(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = LogBuilder(str(tmp_path / "t-0"))
    log.records(NewRecord(b"newer", None, (), 2_000), NewRecord(b"older", None, (), 1_000))
    batch = encode_batch([NewRecord(b"by a clock that is ahead", None, (), 9_000)])
    stamp_append_time(batch, 1_000)
    log.append(batch)
    for kind in ([], ["--records"]):
        found = lines(capsys, "dump", *kind, "--until", "1970-01-01T00:00:01.500Z", str(tmp_path))
        assert len(found) == 2
        assert run(["dump", *kind, "--until", "1970-01-01T00:00:01Z", str(tmp_path)]) == 3


@pytest.mark.parametrize(
    "command",
    [["dump"], ["dump", "--json"], ["dump", "--records"], ["dump", "--records", "--json"], ["export"]],
)
@pytest.mark.parametrize(
    "filters", [["--since", "2999-01-01T00:00:00Z"], ["--until", "2001-01-01"], ["--from-offset", "9"]]
)
def test_nothing_that_matches_is_an_exit_code_of_its_own(
    data: Path, capsys: pytest.CaptureFixture[str], command: list[str], filters: list[str]
) -> None:
    assert run([*command, "--topic", "t", *filters, str(data)]) == 3
    captured = capsys.readouterr()
    assert (captured.out, captured.err.splitlines()[1:]) == ("", [])
    assert captured.err.endswith(" matched\n")


def test_a_time_that_cannot_be_told_in_milliseconds_is_a_wrong_argument(data: Path) -> None:
    for moment in ("0001-01-01", "yesterday"):
        done = subprocess.run(
            [*COMMAND, "dump", "--since", moment, str(data)], capture_output=True, check=False
        )
        assert (done.returncode, b"ISO 8601" in done.stderr) == (2, True), done.stderr


def test_a_file_whose_name_is_no_text_can_be_told_in_json(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(data, tmp_path / "copy")
    (copy / "logs" / "t-0" / os.fsdecode(b"\xff.log")).write_bytes(b"")
    run(["verify", "--json", str(copy)])
    assert "\\udcff.log" in capsys.readouterr().out


def test_any_text_and_any_name_can_be_printed_whatever_encoding_the_terminal_has(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"y\xff")
    with logbroker.open(path) as broker, broker.producer() as producer:
        broker.create_topic("t")
        producer.send("t", "\u2603".encode()).result(timeout=10)

    def output(*arguments: str) -> bytes:
        environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
        command = [*COMMAND, *arguments, "--topic", "t", path]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout

    assert output("dump", "--records").split(b"\t")[5] == "\u2603".encode()
    assert output("segments").split(b"\t")[2].startswith(os.fsencode(path))
    (segment,) = json.loads(output("segments", "--json"))
    assert segment["path"].startswith(str(path))
    (line,) = output("dump", "--json").splitlines()
    assert json.loads(line)["path"].startswith(str(path))


def test_the_directory_may_come_first_or_from_the_environment(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lines(capsys, "summary", str(data))
    assert lines(capsys, str(data), "summary") == lines(capsys, "--data", str(data), "summary") == expected
    monkeypatch.setenv("LOGBROKER_DATA", str(data))
    assert lines(capsys, "summary") == expected


def test_a_closed_pipe_ends_it_quietly(data: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "dump", str(data)], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_asking_a_folder_without_a_journal_for_offsets_is_one_line_on_stderr(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("offsets", "journal"):
        assert run([command, str(data / "logs" / "t-0")]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("wrong", [["verify", ""], ["", "verify"], ["--data", "", "verify"]])
def test_an_empty_name_is_refused_and_not_the_root(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(wrong) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "a directory's name cannot be empty" in captured.err


def test_without_arguments_it_prints_its_help_as_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    asked_for = capsys.readouterr()
    assert run([]) == 2
    assert capsys.readouterr() == asked_for
    assert asked_for.err == ""


@pytest.mark.parametrize("wrong", [[], ["verify", "--nonsense", "x"], ["dump", "x", "--from-offset", "a"]])
def test_wrong_usage_ends_with_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(wrong) == 2


def test_help_loads_nothing_of_the_engine() -> None:
    code = "import sys; from logbroker_tools.cli import run; run(['--help']); print('loaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.partition("loaded")[2].split())
    assert not loaded & {"lmdb", "crcmod", "rich", "zstandard", "logbroker_storage.record_batch", "logbroker"}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_from_the_start_is_nowhere_and_no_error(data: Path, closed: str) -> None:
    command = f'exec "{sys.executable}" -m logbroker_tools.cli verify "{data}" {closed}'
    done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["dump", "--topic", "nothing"], 3), (["summary", "--partition", "x"], 2), (["journal", "nowhere"], 1)],
)
def test_a_message_that_nobody_can_read_changes_no_exit_code(
    data: Path, tmp_path: Path, arguments: list[str], code: int
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "LOGBROKER_DATA": str(data)}
    done = subprocess.run(
        [*COMMAND, *arguments],
        stderr=writer,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stdout) == (code, b"")
