"""logbroker topic."""

from __future__ import annotations

from .conftest import Cli


def test_create_list_describe_alter_delete(cli: Cli) -> None:
    assert cli("topic", "create", "orders", "--partitions", "2", "--config", "retention.ms=1000").code == 0
    cli.produce("orders", b"a\nb\n", "--partition", "1")
    assert [row[:3] for row in cli("topic", "list").rows] == [["orders", "2", "2"]]
    rows = cli("topic", "describe", "orders").rows
    assert [row[:5] for row in rows if row[0] == "partition"] == [
        ["partition", "0", "0", "0", "0"],
        ["partition", "1", "0", "2", "2"],
    ]
    assert ["config", "retention.ms", "1000"] in rows
    assert cli("topic", "alter", "orders", "--partitions", "3", "--reset", "retention.ms").code == 0
    description = cli("topic", "describe", "orders", "--json").document
    assert len(description["partitions"]) == 3
    assert description["overrides"] == {}
    assert description["config"]["retention.ms"] == "604800000"
    assert cli("topic", "delete", "orders").code == 0
    assert cli("topic", "list", "--json").document == []


def test_json_documents(cli: Cli) -> None:
    created = cli("topic", "create", "orders", "--json").document
    assert created["name"] == "orders"
    assert created["records"] == 0
    listed = cli("topic", "list", "--json").document
    assert listed == [{"name": "orders", "partitions": 1, "records": 0, "size_bytes": 0}]
    assert cli("topic", "alter", "orders", "-c", "durability=os", "--json").document["overrides"] == {
        "durability": "os"
    }
    assert cli("topic", "delete", "orders", "--json").document == {"deleted": ["orders"]}


def test_a_topic_that_exists_is_an_error_unless_it_is_accepted(cli: Cli) -> None:
    cli("topic", "create", "orders")
    again = cli("topic", "create", "orders")
    assert again.code == 1
    assert again.err == "logbroker: topic 'orders' already exists; --exist-ok accepts it as it is\n"
    assert cli("topic", "create", "orders", "--exist-ok").code == 0


def test_unknown_keys_names_and_counts_are_errors_of_one_line(cli: Cli) -> None:
    cli("topic", "create", "orders", "--partitions", "2")
    for arguments in (
        ("create", "a b"),
        ("create", "x", "--config", "retention.mss=1"),
        ("create", "x", "--config", "retention.ms=soon"),
        ("create", "x", "--partitions", "100000"),
        ("describe", "missing"),
        ("alter", "missing", "-p", "2"),
        ("alter", "orders", "-p", "1"),
        ("delete", "missing"),
        ("delete", "orders", "missing"),
    ):
        result = cli("topic", *arguments)
        assert result.code == 1, arguments
        assert result.err.count("\n") == 1, result.err
        assert result.out == b""
    assert [row[0] for row in cli("topic", "list").rows] == ["orders"], "nothing was made, nothing deleted"


def test_wrong_usage(cli: Cli) -> None:
    for arguments in (
        (),
        ("create",),
        ("create", "x", "--partitions", "0"),
        ("create", "x", "--partitions", "many"),
        ("create", "x", "--config", "retention.ms"),
        ("alter", "x"),
        ("destroy", "x"),
        ("list", "--nonsense"),
    ):
        result = cli("topic", *arguments)
        assert result.code == 2, arguments
        assert result.err
        assert result.out == b""
