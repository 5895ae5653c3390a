"""logbroker transform."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from .conftest import Cli

PIPELINE = """
[[step]]
kind = "decode"
format = "json"
[[step]]
kind = "rename"
fields = { a = "b" }
[[step]]
kind = "encode"
format = "json"
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    path = tmp_path / "clean.toml"
    path.write_text(PIPELINE)
    return str(path)


@pytest.fixture
def filled(cli: Cli) -> Cli:
    cli.produce("raw", b'k:{"a":0}\nk:{\nk:{"a":2}\n', "--key-separator", ":")
    for topic in ("clean", "dead"):
        cli("topic", "create", topic)
    return cli


def test_steps_lists_every_kind_with_its_options(cli: Cli) -> None:
    rows = {kind: (summary, options) for kind, summary, options in cli("transform", "steps").rows}
    assert rows["rename"][1] == "fields*, missing"
    document = {kind["kind"]: kind for kind in cli("transform", "steps", "--json").document}
    assert document.keys() == rows.keys()
    assert document["encode json"]["options"][0] == {
        "name": "sort_keys",
        "type": "true or false",
        "required": False,
        "default": False,
    }
    assert not cli.data.exists()


def test_check_shows_the_steps_or_the_one_that_is_wrong(cli: Cli, pipeline: str, tmp_path: Path) -> None:
    assert cli("transform", "check", pipeline).rows[1] == ["2", "rename", 'fields={"a":"b"}']
    document = cli("transform", "check", pipeline, "--json").document
    assert (document["ok"], document["name"], len(document["steps"])) == (True, "clean", 3)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(PIPELINE.replace("fields", "feilds"))
    result = cli("transform", "check", str(wrong), "--json")
    assert result.code == 1
    assert "step 2: rename: there is no option 'feilds'; did you mean 'fields'?" in result.err
    assert result.err.count("\n") == 1
    assert (result.document["ok"], result.document["step"]) == (False, 2)
    missing = cli("transform", "check", "nothing.toml")
    assert (missing.code, missing.out) == (1, b"")
    assert "nothing.toml" in missing.err
    assert cli("transform", "check", "a = 1").code == 1


def test_preview_shows_what_goes_in_and_comes_out_and_errors_beside_it(filled: Cli, pipeline: str) -> None:
    result = filled("transform", "preview", pipeline, "raw")
    assert result.code == 0
    shown = [
        [row[0], row[3], *row[-3:-1]] if row[0] != "error" else [*row[:1], *row[3:]] for row in result.rows
    ]
    assert shown == [
        ["in", "0", "k", '{"a":0}'],
        ["out", "0", "k", '{"b":0}'],
        ["in", "1", "k", "{"],
        ["error", "1", "1 decode json", "the value is not JSON: Input data was truncated"],
        ["in", "2", "k", '{"a":2}'],
        ["out", "2", "k", '{"b":2}'],
    ]
    objects = filled("transform", "preview", pipeline, "raw", "--json").objects
    assert [item["record"]["offset"] for item in objects] == [0, 1, 2]
    assert [[message["value"] for message in item["messages"]] for item in objects] == [
        ['{"b":0}'],
        [],
        ['{"b":2}'],
    ]
    assert [item["error"] and item["error"]["step"] for item in objects] == [None, "1 decode json", None]
    assert filled("tail", "clean").code == 3, "nothing was written"


@pytest.mark.parametrize(
    ("options", "offsets"),
    [
        (("-n", "1"), [2]),
        (("--from", "earliest", "-n", "2"), [0, 1]),
        (("--from", "1"), [1, 2]),
        (("--from", "-2", "-n", "1"), [1]),
        (("--partition", "0", "-n", "2"), [1, 2]),
    ],
)
def test_preview_takes_the_records_that_are_wanted(
    filled: Cli, pipeline: str, options: tuple[str, ...], offsets: list[int]
) -> None:
    objects = filled("transform", "preview", pipeline, "raw", "--json", *options).objects
    assert [item["record"]["offset"] for item in objects] == offsets


def test_preview_of_nothing_is_3_and_of_no_topic_1(filled: Cli, pipeline: str) -> None:
    assert filled("transform", "preview", pipeline, "clean").code == 3
    assert filled("transform", "preview", pipeline, "nowhere").code == 1
    assert filled("transform", "preview", pipeline, "raw", "--from", "someday").code == 2


def test_preview_shows_bytes_as_json_can(filled: Cli, tmp_path: Path) -> None:
    path = tmp_path / "hex.toml"
    path.write_text(
        '[[step]]\nkind = "decode"\nformat = "bytes"\nencoding = "hex"\n'
        '[[step]]\nkind = "set_headers"\nvalues = { a = "b" }'
    )
    filled.produce("bytes", b"ff00\n")
    (item,) = filled("transform", "preview", str(path), "bytes", "--json").objects
    (message,) = item["messages"]
    assert (message["value"], message["encoding"]) == ("/wA=", "base64")
    assert message["headers"] == [{"key": "a", "value": "b"}]


RUN = ("transform", "run", "raw", "clean", "--group", "g", "--until-idle", "0.3", "--pipeline")


def test_run_transforms_once_and_buries_the_rest(filled: Cli, pipeline: str) -> None:
    result = filled(*RUN, pipeline, "--dead-letter", "dead", "--json")
    assert (result.code, result.document) == (0, {"records": 3, "dead_letters": 1})
    again = filled(*RUN, pipeline, "--dead-letter", "dead")
    assert (again.code, again.out) == (0, b"")
    assert "transformed 0 records" in again.err
    assert filled.values("clean") == b'{"b":0}\n{"b":2}\n'
    assert filled.values("dead") == b"{\n"
    (letter,) = filled("tail", "dead", "--json").objects
    headers = {header["key"]: header["value"] for header in letter["headers"]}
    assert (headers["x-dead-letter-topic"], headers["x-dead-letter-offset"]) == ("raw", "1")


def test_run_without_a_dead_letter_stops_at_the_record(filled: Cli, pipeline: str) -> None:
    result = filled(*RUN, pipeline)
    assert result.code == 1
    assert "step 1 decode json cannot be done for raw-0 at offset 1" in result.err
    assert "Traceback" not in result.err
    assert filled(*RUN[:3], "nowhere", *RUN[4:], pipeline).code == 1


def test_ctrl_c_ends_a_run_behind_the_batch_at_hand(filled: Cli, pipeline: str) -> None:
    run = ("transform", "run", "raw", "clean", "-g", "g", "--pipeline", pipeline, "--dead-letter", "dead")
    with (
        filled.start("tail", "clean", "--from", "earliest", "-f", "--value-only") as tail,
        filled.start(*run) as process,
    ):
        assert tail.stdout is not None
        assert tail.stdout.readline() == b'{"b":0}\n'
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        tail.terminate()
    assert process.returncode == 130
    assert b"transformed 3 records" in err
