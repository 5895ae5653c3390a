"""What a process knows of the events of a kind, and how it learns of changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from logbroker_storage.events import GroupEvent
from logbroker_storage.journal import GROUPS_VERSION
from logbroker_storage.known_events import KnownEvents
from logbroker_storage.testing import Workbench
from logbroker_storage.view.changes import KEPT


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    bench = Workbench(str(tmp_path / "data"))
    yield bench
    bench.close()


def known_events(bench: Workbench) -> KnownEvents[GroupEvent]:
    return KnownEvents(bench.directory.view, GroupEvent, GroupEvent.ALL, GROUPS_VERSION)


def group(name: str, *topics: str) -> GroupEvent:
    return GroupEvent(name, list(topics), 0)


@pytest.mark.parametrize("others", [0, 1, KEPT - 4, KEPT - 3, KEPT - 2, KEPT, 3 * KEPT])
def test_who_knows_the_events_of_before_learns_of_every_change_since(bench, others):
    """However many there were: beyond those that are noted it reads all events."""
    journal = bench.directory.journal
    journal.record([group("stays"), group("changes"), group("goes")])
    known = known_events(bench)
    before = known.all()
    assert sorted(before) == ["changes", "goes", "stays"]
    journal.record([group("changes", "t"), group("comes")])
    journal.delete([GroupEvent.key_of("goes")])
    for number in range(others):
        journal.record([group("other", f"t{number}")])
    events = [group("changes", "t"), group("comes"), group("stays")]
    if others:
        events.append(group("other", f"t{others - 1}"))
    assert known.all() == {event.group: event for event in events} == known_events(bench).all()
    assert sorted(before) == ["changes", "goes", "stays"]  # nobody's table changes under him


def test_many_changes_at_once_are_noted_each(bench):
    known = known_events(bench)
    assert known.all() == {}
    bench.directory.journal.record([group(f"g{number}") for number in range(KEPT)])
    assert len(known.all()) == KEPT


def test_a_change_that_nobody_noted_is_seen(bench):
    """By a process of another version, say, which only counts it."""
    known = known_events(bench)
    bench.directory.journal.record([group("a"), group("b")])
    assert len(known.all()) == 2
    view = bench.directory.view
    with view.write() as transaction:
        view.events.apply(transaction, [(GroupEvent.key_of("a"), None)])
        view.put_meta_int(transaction, GROUPS_VERSION, view.meta_int_in(transaction, GROUPS_VERSION) + 1)
    assert sorted(known.all()) == ["b"]
