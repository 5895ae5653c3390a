"""logbroker tail."""

from __future__ import annotations

import datetime

import pytest

import logbroker
from logbroker.cli.places import offsets_at, ranges_of
from logbroker.cli.positions import Named
from logbroker.records import Message

from .conftest import Cli

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SECOND = datetime.timedelta(seconds=1)
PLACES = ("--format", r"%p:%o ")


@pytest.fixture
def orders(cli: Cli) -> Cli:
    """Two partitions of twelve records; those of partition 1 are half a second younger."""
    with logbroker.open(cli.data) as broker:
        broker.create_topic("orders", partitions=2)
        with broker.producer() as producer:
            for number in range(12):
                for partition in (0, 1):
                    moment = START + SECOND * (number + partition / 2)
                    value = b"%d-%d" % (partition, number)
                    producer.send_many("orders", [Message(value, partition=partition, timestamp=moment)])
    return cli


def places(cli: Cli, *options: str) -> list[str]:
    result = cli("tail", "orders", *PLACES, *options)
    assert result.code == 0, result.err
    return result.out.decode().split()


def run_of(partition: int, first: int, end: int) -> list[str]:
    return [f"{partition}:{offset}" for offset in range(first, end)]


def test_without_anything_it_is_the_last_ten_by_timestamp(orders: Cli) -> None:
    expected = [f"{partition}:{offset}" for offset in range(7, 12) for partition in (0, 1)]
    assert places(orders) == expected
    assert places(orders, "-n", "3") == expected[-3:]
    assert len(places(orders, "-n", "1000")) == 24
    assert places(orders, "-n", "3", "--partition", "1") == run_of(1, 9, 12)
    assert places(orders, "-n", "2", "--until", "5") == ["0:4", "1:4"]


def test_no_records_were_asked_for(orders: Cli) -> None:
    result = orders("tail", "orders", "-n", "0")
    assert (result.code, result.out) == (0, b"")
    assert "but for -n 0" in orders("tail", "--help").out.decode()


@pytest.mark.parametrize(
    ("options", "ranges"),
    [
        (["--from", "earliest"], [(0, 12), (0, 12)]),
        (["--from", "9"], [(9, 12), (9, 12)]),
        (["--from", "-2"], [(10, 12), (10, 12)]),
        (["--from", "-500"], [(0, 12), (0, 12)]),
        (["--from", "2026-01-01T00:00:10Z"], [(10, 12), (10, 12)]),
        (["--from", "2026-01-01T00:00:10.250Z"], [(11, 12), (10, 12)]),
        (["--from", "3", "--until", "5"], [(3, 5), (3, 5)]),
        (["--from", "earliest", "--until", "-10"], [(0, 2), (0, 2)]),
        (["--from", "earliest", "--until", "2026-01-01T00:00:01.250Z"], [(0, 2), (0, 1)]),
        (["--from", "earliest", "--until", "latest"], [(0, 12), (0, 12)]),
        (["--from", "earliest", "--until", "-1h"], [(0, 12), (0, 12)]),
        (["--from", "earliest", "--partition", "1"], [(0, 0), (0, 12)]),
        (["--from", "10", "--partition", "0"], [(10, 12), (0, 0)]),
        (["--from", "earliest", "-n", "5", "--partition", "1"], [(0, 0), (0, 5)]),
        (["--from", "earliest", "-f", "--until", "3"], [(0, 3), (0, 3)]),
        (["--from", "earliest", "-f", "--until", "latest"], [(0, 12), (0, 12)]),
        (["--from", "9", "-f", "--until", "+300ms"], [(9, 12), (9, 12)]),
    ],
)
def test_from_where_to_where(orders: Cli, options: list[str], ranges: list[tuple[int, int]]) -> None:
    expected = [place for partition, limits in enumerate(ranges) for place in run_of(partition, *limits)]
    printed = places(orders, *options)
    assert sorted(printed) == sorted(expected)
    for partition in "01":
        offsets = [int(place[2:]) for place in printed if place[0] == partition]
        assert offsets == sorted(offsets)


def test_with_from_n_is_a_limit(orders: Cli) -> None:
    assert len(places(orders, "--from", "earliest", "-n", "7")) == 7
    assert len(places(orders, "-f", "--from", "earliest", "-n", "7")) == 7


@pytest.mark.parametrize(
    "options",
    [
        ["--from", "2100-01-01"],
        ["--from", "latest"],
        ["--from", "5", "--until", "5"],
        ["--until", "2025-01-01"],
        ["-f", "--from", "latest", "--until", "+200ms"],
    ],
)
def test_nothing_matched_is_exit_code_3(orders: Cli, options: list[str]) -> None:
    result = orders("tail", "orders", *options)
    assert (result.code, result.out, result.err) == (3, b"", "logbroker: no record matched\n")


def test_an_offset_that_is_not_there_is_remarked_upon(orders: Cli) -> None:
    result = orders("tail", "orders", "--from", "100", "--partition", "1")
    assert result.code == 3
    assert "orders-1 has the offsets from 0 to 12, not 100" in result.err
    assert "orders-0" not in result.err


def test_silence_times_out_with_exit_code_3_and_after_what_was_there(orders: Cli) -> None:
    result = orders("tail", "orders", "-f", "-n", "1", "--timeout", "0.1", "--value-only")
    assert (result.code, result.out, result.err) == (3, b"1-11\n", "logbroker: no record for 0.1 seconds\n")


def test_fields_are_separated_by_tabs_on_a_pipe(orders: Cli) -> None:
    assert orders("tail", "orders", "-n", "1").rows == [
        ["orders", "1", "11", "1767225611500", "", "1-11", ""]
    ]


def test_several_topics_and_patterns(orders: Cli) -> None:
    orders.produce("other", b"x\n")
    assert len(places(orders, "other", "--from", "earliest")) == 25
    assert len(orders("tail", "o*", "--from", "earliest").rows) == 25
    assert orders("tail", "none.*").code == 3


def test_a_compacted_or_expired_stretch_does_not_hide_the_last_records(cli: Cli) -> None:
    cli.produce("orders", b"stays\n")
    cli.produce("orders", b"gone\n" * 500, "--ttl", "1ms")
    assert cli("tail", "orders", "-n", "1", "--value-only").out == b"stays\n"


def test_damage_is_told_and_passed_over(orders: Cli) -> None:
    orders.produce("broken", b"1\n2\n3\n")
    orders.produce("broken", b"4\n5\n")
    log = orders.data / "logs" / "broken-0" / "00000000000000000000.log"
    content = bytearray(log.read_bytes())
    content[65] ^= 1  # in the first record, whether the others share its batch or not
    log.write_bytes(content)
    result = orders("tail", "broken", "--from", "earliest", "--value-only")
    assert result.code == 1
    assert "broken-0 is damaged" in result.err
    assert result.err.count("\n") == 1
    assert result.out in (b"2\n3\n4\n5\n", b"4\n5\n")


# Groups ---------------------------------------------------------------------------------------------------


def test_a_group_goes_on_where_it_was(orders: Cli) -> None:
    first = places(orders, "--group", "g", "-n", "10")
    rest = places(orders, "--group", "g")
    assert len(first) == 10
    assert sorted(first + rest) == sorted(run_of(0, 0, 12) + run_of(1, 0, 12))
    assert orders("tail", "orders", "--group", "g").code == 3
    assert orders("group", "describe", "g", "--json").document["lag"] == 0


def test_what_lies_behind_until_is_not_committed(orders: Cli) -> None:
    assert len(places(orders, "--group", "g", "--until", "3")) == 6
    offsets = orders("group", "describe", "g", "--json").document["offsets"]
    assert [row["committed_offset"] for row in offsets] == [3, 3]


def test_a_paused_subscription_ends_it_and_is_named(orders: Cli) -> None:
    orders("subscription", "create", "s", "--topic", "orders", "--kind", "stream")
    orders("subscription", "pause", "s")
    ended = orders("tail", "orders", "--group", "s")
    assert (ended.code, ended.out) == (3, b"")
    assert "subscription 's' is paused" in ended.err
    assert orders("tail", "orders", "--group", "s", "-f", "--timeout", "0.1").code == 3
    orders("subscription", "resume", "s")
    assert len(places(orders, "--group", "s")) == 24


def test_from_counts_where_the_group_has_committed_nothing(orders: Cli) -> None:
    assert places(orders, "--group", "g", "--from", "-1") in (["0:11", "1:11"], ["1:11", "0:11"])
    assert orders("tail", "orders", "--group", "g", "--from", "earliest").code == 3
    assert len(places(orders, "--group", "h", "--from", "stored")) == 24


# Errors ---------------------------------------------------------------------------------------------------


def test_a_topic_or_partition_that_is_not_there_is_an_error(orders: Cli) -> None:
    for arguments in (["missing"], ["orders", "missing"], ["orders", "--partition", "2"], ["bad name"]):
        result = orders("tail", *arguments)
        assert result.code == 1, arguments
        assert result.err.count("\n") == 1


def test_wrong_usage(orders: Cli) -> None:
    for options in (
        ["--from", "yesterday"], ["--from", "stored"], ["--until", "stored"], ["--from", "+5"], ["-n", "-1"],
        ["--format", "%x"], ["--json", "--value-only"], ["--group", "g", "--partition", "0"],
    ):  # fmt: skip
        result = orders("tail", "orders", *options)
        assert result.code == 2, options
        assert result.err.count("\n") == 1
    assert orders("tail").code == 2


def test_now_is_where_a_consumer_stands_even_before_an_undecided_transaction(cli: Cli) -> None:
    """Following from now on gives its records, once they are committed."""
    with logbroker.open(cli.data) as broker:
        broker.create_topic("t")
        with broker.producer() as producer:
            producer.send("t", b"before")
        with broker.transaction("writer") as tx:
            tx.send("t", b"in the transaction").result(5)
            found = ranges_of(broker, ["t"])
            assert offsets_at(broker, found, Named.LATEST) == {("t", 0): 1}
