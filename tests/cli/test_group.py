"""logbroker group."""

from __future__ import annotations

import pytest

import logbroker

from .conftest import Cli


@pytest.fixture
def half_read(cli: Cli) -> Cli:
    """A topic of ten records, of which the group has committed five."""
    cli.produce("orders", b"".join(b"%d\n" % number for number in range(10)))
    assert cli("tail", "orders", "--group", "billing", "-n", "5").code == 0
    return cli


def committed(cli: Cli) -> int:
    offset: int = cli("group", "describe", "billing", "--json").document["offsets"][0]["committed_offset"]
    return offset


def test_describe_shows_offsets_and_lag(half_read: Cli) -> None:
    assert half_read("group", "list").rows == [["billing", "0", "5"]]
    assert half_read("group", "list", "--json").document == [{"name": "billing", "members": 0, "lag": 5}]
    assert half_read("group", "describe", "billing").rows == [
        ["offset", "orders", "0", "5", "10", "5", "-"],
    ]
    document = half_read("group", "describe", "billing", "--json").document
    assert (document["name"], document["members"], document["lag"]) == ("billing", [], 5)


def test_describe_shows_live_members(half_read: Cli) -> None:
    with logbroker.open(half_read.data) as broker, broker.consumer("orders", group="billing") as consumer:
        consumer.poll(1)
        rows = half_read("group", "describe", "billing").rows
        assert [(row[0], row[3:]) for row in rows if row[0] == "member"] == [
            ("member", ["orders", "orders-0"])
        ]
        refused = half_read("group", "reset", "billing", "--to", "earliest")
        assert refused.code == 1
        assert "live members" in refused.err
        assert half_read("group", "delete", "billing").code == 1


@pytest.mark.parametrize(
    ("to", "offset"),
    [("earliest", 0), ("latest", 10), ("7", 7), ("99", 10), ("-2", 3), ("+2", 7), ("-100", 0), ("-1h", 0),
     ("2100-01-01", 10)],
)  # fmt: skip
def test_reset(half_read: Cli, to: str, offset: int) -> None:
    tried = half_read("group", "reset", "billing", "--to", to, "--dry-run", "--json")
    assert tried.document == {
        "group": "billing",
        "dry_run": True,
        "offsets": [{"topic": "orders", "partition": 0, "before": 5, "offset": offset}],
    }
    assert committed(half_read) == 5
    assert half_read("group", "reset", "billing", "--to", to).rows == [["orders", "0", "5", str(offset)]]
    assert committed(half_read) == offset


def test_a_group_can_be_made_by_a_reset(half_read: Cli) -> None:
    assert half_read("group", "reset", "new", "--to", "latest").code == 1
    assert half_read("group", "reset", "new", "--to", "latest", "--topic", "orders").code == 0
    assert half_read("tail", "orders", "--group", "new").code == 3, "it is at the end"


def test_delete(half_read: Cli) -> None:
    assert half_read("group", "delete", "billing").code == 0
    assert half_read("group", "list", "--json").document == []
    assert half_read("group", "delete", "billing").code == 1
    assert half_read("group", "describe", "billing").code == 1


def test_wrong_usage(half_read: Cli) -> None:
    for arguments in ((), ("reset", "billing"), ("reset", "billing", "--to", "stored"), ("describe",)):
        assert half_read("group", *arguments).code == 2, arguments
