"""logbroker produce."""

from __future__ import annotations

import random

import pytest

import logbroker
from logbroker.delivery_headers import deliver_at_ms, priority_of
from logbroker_storage.record_batch import decode_records

from .conftest import Cli

AWKWARD = b"plain\n\n\r\nends in cr\r\n\xff\xfe\0\n" + b"x" * 100_000 + b"\n\n"


def test_what_goes_in_comes_back_byte_for_byte(cli: Cli) -> None:
    result = cli.produce("packages", AWKWARD)
    assert result.code == 0
    assert "created topic packages with 1 partition" in result.err
    assert cli.values("packages") == AWKWARD


def test_a_last_line_without_a_newline_is_a_record(cli: Cli) -> None:
    cli.produce("packages", b"one\ntwo")
    assert cli.values("packages") == b"one\ntwo\n"


def test_an_empty_file_is_no_record(cli: Cli) -> None:
    assert cli.produce("packages", b"", "--json").document["records"] == 0
    assert cli("topic", "describe", "packages", "--json").document["records"] == 0


def test_the_summary_as_json(cli: Cli) -> None:
    summary = cli.produce("packages", b"a\nbcd\n", "--json").document
    assert summary.pop("seconds") >= 0
    assert summary == {"topic": "packages", "records": 2, "bytes": 4, "skipped": 0, "interrupted": False}


@pytest.mark.parametrize(
    "options", [[], ["--compression", "zstd"], ["--header", "a=b"], ["--acks", "written"]]
)
def test_running_it_again_under_a_name_appends_what_is_missing(cli: Cli, options: list[str]) -> None:
    lines = [b"line %d\n" % number for number in range(3000)]
    for end, records in ((1000, 1000), (1000, 0), (3000, 2000), (3000, 0)):
        summary = cli.produce("packages", b"".join(lines[:end]), "--producer", "loader", "--json", *options)
        assert (summary.document["records"], summary.document["skipped"]) == (records, end - records)
    assert cli.values("packages") == b"".join(lines)


@pytest.mark.parametrize("options", [[], ["--key-separator", " "], ["--key-separator", "#"]])
def test_with_several_partitions_each_line_is_there_once_whatever_was_cut_off(
    cli: Cli, rng: random.Random, options: list[str]
) -> None:
    cli("topic", "create", "packages", "--partitions", "3")
    lines = [b"line%d %d\n" % (number % 40, number) for number in range(5000)]
    for end in [*sorted(rng.sample(range(5000), 3)), 5000]:
        assert cli.produce("packages", b"".join(lines[:end]), "--producer", "loader", *options).code == 0
    joined = cli("tail", "packages", "--from", "earliest", "--format", r"%p\t%k %v\n").rows
    assert len({partition for partition, _ in joined}) == 3
    assert sorted(line.strip() for _, line in joined) == sorted(line.decode().strip() for line in lines)


def test_the_line_number_is_the_sequence(cli: Cli) -> None:
    cli.produce("packages", b"a\nb\nc\n", "--producer", "loader")
    with logbroker.open(cli.data) as broker, broker.producer(name="loader") as producer:
        assert producer.last_sequence("packages", partition=0) == 2


def test_partitions_that_were_added_are_noticed_before_anything_is_doubled(cli: Cli) -> None:
    cli("topic", "create", "packages", "--partitions", "2")
    content = b"x\n" * 5000
    cli.produce("packages", content, "--producer", "loader")
    cli("topic", "alter", "packages", "--partitions", "5")
    result = cli.produce("packages", content + b"y\n", "--producer", "loader")
    assert result.code == 1
    assert "partitions were added since" in result.err
    assert cli.values("packages") == content


def test_keys_headers_and_the_partition(cli: Cli) -> None:
    cli("topic", "create", "orders", "--partitions", "4")
    content = b"k1:v1\nno separator\n:empty key\nk1:a:b\n\xff:x\n"
    options = ("--key-separator", ":", "--header", "type=created", "--header", "empty=", "--partition", "2")
    assert cli.produce("orders", content, *options).code == 0
    records = cli("tail", "orders", "--json").objects
    assert [(one["key"], one["value"]) for one in records] == [
        ("k1", "v1"), (None, "no separator"), ("", "empty key"), ("k1", "a:b"), ("/w==", "x"),
    ]  # fmt: skip
    assert records[4]["key_encoding"] == "base64"
    assert {one["partition"] for one in records} == {2}
    assert records[0]["headers"] == [{"key": "type", "value": "created"}, {"key": "empty", "value": ""}]


def test_a_time_to_live(cli: Cli) -> None:
    assert cli.produce("orders", b"soon gone\n", "--ttl", "1ms").code == 0
    assert cli.produce("orders", b"stays\n", "--ttl", "1h").code == 0
    assert cli.values("orders") == b"stays\n"


@pytest.mark.parametrize("options", [(), ("--producer", "loader"), ("--key-separator", ":")])
def test_a_line_that_is_too_long_is_named_and_the_lines_before_it_are_kept(
    cli: Cli, options: tuple[str, ...]
) -> None:
    for size in (1_100_000, 5_000_000):
        result = cli.produce("orders", b"first\nsecond\n" + b"x" * size + b"\nfourth\n", *options)
        assert result.code == 1
        assert "logbroker: line 3" in result.err
        assert "max.message.bytes" in result.err
    assert cli.values("orders").startswith(b"first\nsecond\n")


def test_a_file_that_is_not_there_leaves_nothing_behind(cli: Cli) -> None:
    for path in (str(cli.data / "missing"), "/"):
        result = cli("produce", "orders", path)
        assert result.code == 1
        assert result.err.startswith(f"logbroker: {path}: ")
    assert not cli.data.exists()


def test_errors_and_wrong_usage(cli: Cli) -> None:
    assert cli.produce("a b", b"x\n").code == 1
    cli("topic", "create", "orders")
    assert cli.produce("orders", b"x\n", "--partition", "1").code == 1
    for options in (
        ["--compression", "zip"], ["--acks", "some"], ["--header", "a"], ["--header", "=a"], ["--key-separator", ""],
        ["--ttl", "soon"], ["--partition", "-1"],
    ):  # fmt: skip
        assert cli.produce("orders", b"x\n", *options).code == 2, options
    assert cli("topic", "describe", "orders", "--json").document["records"] == 0


def test_what_queues_go_by_is_in_the_records(cli: Cli) -> None:
    assert cli.produce("jobs", b"a\n", "--deliver-at", "2099-01-01T00:00+00:00", "--priority", "7").code == 0
    assert cli.produce("jobs", b"b\n", "--delay", "1h", "-H", "k=v").code == 0
    with logbroker.open(cli.data) as broker:
        batches = broker._directory.log("jobs", 0).reader(0).read()
        first, second = [record for batch in batches for record in decode_records(batch)]
    assert deliver_at_ms(first) == 4_070_908_800_000
    assert priority_of(first) == 7
    assert deliver_at_ms(second) - second.timestamp_ms == pytest.approx(3_600_000, abs=10_000)
    assert cli.values("jobs") == b"a\nb\n"


@pytest.mark.parametrize(
    "options",
    [
        ["--deliver-at", "soon"], ["--deliver-at", "100"], ["--delay", "-1s"], ["--delay", "x"], ["--priority", "10"],
        ["--delay", "1s", "--deliver-at", "+1s"],
    ],
)  # fmt: skip
def test_what_queues_cannot_go_by_is_wrong_usage(cli: Cli, options: list[str]) -> None:
    assert cli.produce("jobs", b"x\n", *options).code == 2


def test_lines_with_a_message_id_are_appended_once(cli: Cli) -> None:
    content = b"a:1\nb:2\na:3\n"
    options = ("--key-separator", ":", "--message-id", "order-{key}")
    first = cli.produce("orders", content, *options, "--json").document
    assert (first["records"], first["bytes"], first["skipped"]) == (2, 6, 1)
    again = cli.produce("orders", content, *options)
    assert "0 records, 0 bytes" in again.err
    assert "3 lines were there already" in again.err
    assert (
        cli.produce("orders", b"1\n1\n", "--message-id", "{line}-{value}", "--json").document["records"] == 2
    )
    assert cli.values("orders") == b"1\n2\n1\n1\n"


def test_a_line_that_gives_no_message_id_is_named(cli: Cli) -> None:
    for line, message in ((b"x" * 300, "1 to 200 bytes"), (b"\xff", "not UTF-8"), (b"", "1 to 200 bytes")):
        result = cli.produce("orders", b"fine\n" + line + b"\n", "--message-id", "{value}")
        assert result.code == 1
        assert "line 2" in result.err
        assert message in result.err
    assert cli.produce("orders", b"x\n", "--message-id", "a", "--producer", "loader").code == 2
    assert cli.values("orders") == b"fine\n"
