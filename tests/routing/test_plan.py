"""Which bindings take a record, in which order, and why; and that no loop is ever bound."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logbroker.routing.plan import Binding, Reason, find_loop, outputs, plan, routes, written
from logbroker.topic_names import source_matches
from logbroker_storage.errors import InvalidRequestError, RoutingLoopError
from logbroker_storage.events import BindingEvent, TopicReach
from logbroker_storage.record import Record

TOPIC_ID = bytes(16)
UPPER = '[[step]]\nkind = "decode"\nformat = "json"\n[[step]]\nkind = "encode"\nformat = "json"\n'


def event(name: str = "b", source: str = "orders", target: str = "t", **fields: Any) -> BindingEvent:
    return BindingEvent(
        **{"name": name, "source": source, "target": target, "dead_letter": f"{target}.dead", "created_ms": 0}
        | fields
    )


def record(value: bytes | None = b"{}", offset: int = 100, topic: str = "orders", **headers: bytes) -> Record:
    return Record(topic, 0, offset, 1_000, b"k", value, tuple(headers.items()))


def reasons(shown: Record, *events: BindingEvent) -> dict[str, Reason]:
    asked = routes(map(Binding, events), shown.topic, TOPIC_ID, shown.partition)
    return {verdict.binding.name: verdict.reason for verdict in plan(shown, asked)}


def reason(shown: Record, one: BindingEvent) -> Reason:
    return reasons(shown, one)[one.name]


# Conditions ---------------------------------------------------------------------------------------------


def test_a_binding_without_conditions_takes_every_record_of_its_source():
    assert reason(record(), event()) is Reason.TAKEN
    assert reason(record(None), event()) is Reason.TAKEN


def test_a_binding_of_another_topic_is_not_even_asked():
    assert reasons(record(topic="orders.eu"), event(source="orders.*"), event("other", "payments")) == {
        "b": Reason.TAKEN
    }


@pytest.mark.parametrize(
    ("headers", "match", "expected"),
    [
        ({"type": "created"}, "all", True),
        ({"type": "paid"}, "all", False),
        ({"type": None}, "all", True),
        ({"nothing": None}, "all", False),
        ({"type": "created", "region": "eu"}, "all", False),
        ({"type": "created", "region": "eu"}, "any", True),
        ({"type": "paid", "nothing": None}, "any", False),
        ({"region": ""}, "any", False),
        ({"empty": ""}, "all", True),
    ],
)
def test_headers_match_all_of_them_or_any(headers, match, expected):
    shown = record(type=b"created", region=b"us", empty=b"")
    verdict = reason(shown, event(headers=headers, headers_match=match))
    assert verdict is (Reason.TAKEN if expected else Reason.HEADERS)


def test_of_a_header_that_is_there_twice_one_has_to_match():
    shown = Record("orders", 0, 0, 0, None, b"", (("tag", b"a"), ("tag", b"b")))
    assert reason(shown, event(headers={"tag": "b"})) is Reason.TAKEN


def test_a_condition_looks_at_the_content():
    big = event(when="json.total > 100")
    assert reason(record(b'{"total": 101}'), big) is Reason.TAKEN
    assert reason(record(b'{"total": 100}'), big) is Reason.WHEN


def test_headers_and_condition_must_both_hold_and_headers_are_looked_at_first():
    both = event(headers={"type": "created"}, when="json.total > 100")
    assert reason(record(b"no json"), both) is Reason.HEADERS
    assert reason(record(b'{"total": 1}', type=b"created"), both) is Reason.WHEN
    assert reason(record(b'{"total": 101}', type=b"created"), both) is Reason.TAKEN


def test_a_condition_that_cannot_be_evaluated_is_a_failure_and_not_a_no():
    asked = routes([Binding(event(when="json.total > 100"))], "orders", TOPIC_ID, 0)
    (verdict,) = plan(record(b"no json"), asked)
    assert verdict.reason is Reason.FAILED
    out = written(verdict, record(b"no json"))
    assert out.topic == "t.dead"
    assert [message.value for message in out.messages] == [b"no json"]
    assert "no json" in str(out.error) or "JSON" in str(out.error)


# Order and what is left ---------------------------------------------------------------------------------


def test_bindings_are_written_by_age_then_name_and_those_for_the_unrouted_last():
    events = [
        event("rest", unrouted=True, created_ms=1),
        event("young", created_ms=3),
        event("b", created_ms=2),
        event("a", created_ms=2),
    ]
    assert list(reasons(record(), *events)) == ["a", "b", "young", "rest"]


def test_several_bindings_take_one_record_each():
    assert reasons(record(), event("a"), event("b"), event("c", when="false")) == {
        "a": Reason.TAKEN,
        "b": Reason.TAKEN,
        "c": Reason.WHEN,
    }


def test_what_nobody_takes_goes_to_all_that_take_the_unrouted():
    rest, also = event("rest", unrouted=True), event("also", unrouted=True)
    picky = event("picky", when="json.a == 1")
    assert reasons(record(b'{"a": 2}'), rest, also, picky)["rest"] is Reason.TAKEN
    assert reasons(record(b'{"a": 2}'), rest, also, picky)["also"] is Reason.TAKEN
    taken = reasons(record(b'{"a": 1}'), rest, also, picky)
    assert (taken["rest"], taken["also"]) == (Reason.ROUTED_ELSEWHERE, Reason.ROUTED_ELSEWHERE)


def test_what_failed_at_a_binding_is_not_unrouted_its_dead_letter_has_it():
    verdicts = reasons(record(b"no json"), event("rest", unrouted=True), event("picky", when="json.a == 1"))
    assert verdicts == {"picky": Reason.FAILED, "rest": Reason.ROUTED_ELSEWHERE}


def test_a_binding_of_another_source_does_not_take_from_the_unrouted():
    verdicts = reasons(record(), event("rest", unrouted=True), event("other", "payments"))
    assert verdicts == {"rest": Reason.TAKEN}


# Where it counts from -----------------------------------------------------------------------------------


def reach(*, start: int, routed: int) -> list[TopicReach]:
    return [TopicReach("orders", TOPIC_ID, [start], [routed])]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [(9, Reason.BEFORE_START), (10, Reason.ROUTED), (19, Reason.ROUTED), (20, Reason.TAKEN)],
)
def test_a_binding_counts_from_its_start_and_writes_from_where_it_was_not_written(offset, expected):
    assert reason(record(offset=offset), event(reach=reach(start=10, routed=20))) is expected


def test_records_from_before_a_binding_are_unrouted_and_those_it_was_written_for_are_not():
    rest = event("rest", unrouted=True)
    known = event("known", reach=reach(start=10, routed=20))
    assert reasons(record(offset=9), rest, known)["rest"] is Reason.TAKEN
    assert reasons(record(offset=15), rest, known)["rest"] is Reason.ROUTED_ELSEWHERE


def test_a_topic_that_was_made_anew_and_later_partitions_count_from_their_beginning():
    binding = Binding(event(reach=reach(start=10, routed=20)))
    assert binding.reach(TOPIC_ID, 0) == (10, 20)
    assert binding.reach(TOPIC_ID, 1) == (0, 0)
    assert binding.reach(b"another id of it", 0) == (0, 0)


# What is written ----------------------------------------------------------------------------------------


def taken(shown: Record, one: BindingEvent):
    (verdict,) = plan(shown, routes([Binding(one)], "orders", TOPIC_ID, 0))
    return written(verdict, shown)


def test_without_a_transform_a_record_stays_what_it_is():
    shown = Record("orders", 1, 5, 123, b"k", b"v", (("h", b"1"), ("h", None)))
    out = taken(shown, event())
    assert (out.topic, out.error) == ("t", None)
    (message,) = out.messages
    assert (message.key, message.value, message.headers, message.timestamp, message.partition) == (
        b"k",
        b"v",
        (("h", b"1"), ("h", None)),
        123,
        None,
    )


def test_a_record_without_a_timestamp_gets_the_time_of_its_routing():
    (message,) = taken(Record("orders", 0, 5, -1, None, b"v"), event()).messages
    assert message.timestamp is None


def test_what_cannot_be_transformed_goes_to_the_dead_letter_as_it_was():
    out = taken(record(b"no json"), event(transform=UPPER))
    assert out.topic == "t.dead"
    assert [message.value for message in out.messages] == [b"no json"]
    assert out.error is not None
    assert taken(record(b'{"a":1}'), event(transform=UPPER)).topic == "t"


@pytest.mark.parametrize("broken", [{"when": "json."}, {"transform": '[[step]]\nkind = "unheard-of"\n'}])
def test_a_binding_that_cannot_be_used_here_stops_the_plan(broken):
    binding = Binding(event(**broken))
    assert "'b' cannot be used here" in str(binding.error)
    with pytest.raises(InvalidRequestError, match="cannot be used here"):
        plan(record(), routes([binding], "orders", TOPIC_ID, 0))


# Loops --------------------------------------------------------------------------------------------------


def loop(*events: BindingEvent) -> RoutingLoopError | None:
    return find_loop(events[:-1], events[-1])


def test_a_loop_is_named_from_the_topic_that_closes_it():
    found = loop(event("ab", "a", "b"), event("bc", "b", "c"), event("ca", "c", "a"))
    assert found is not None
    assert found.cycle == ["c", "a", "b", "c"]
    assert found.bindings == ["ca", "ab", "bc"]
    assert "c -> a -> b -> c (by 'ca', 'ab', 'bc')" in str(found)


@pytest.mark.parametrize(
    "events",
    [
        [event("self", "a", "a")],
        [event("wild", "orders.*", "orders.all")],
        [event("all", ">", "audit")],
        [event("in", "orders.>", "x.all"), event("out", "x.*", "orders.eu")],
        [event("later", "*.raw", "eu.clean"), event("back", "*.clean", "eu.raw")],
        [event("letters", "orders.*", "clean", dead_letter="orders.dead")],
        [event("ab", "a", "b", dead_letter="d"), event("redrive", "d", "a")],
    ],
)
def test_loops_through_wildcards_later_topics_and_dead_letters_are_found(events):
    assert loop(*events) is not None


@pytest.mark.parametrize(
    "events",
    [
        [event("ab", "a", "b"), event("ac", "a", "c"), event("bd", "b", "d"), event("cd", "c", "d")],
        [event("wild", "orders.*", "orders.all.of")],
        [event("deep", "orders.>", "orders", dead_letter="dead")],
        [event("one", "*", "all.topics")],
    ],
)
def test_what_joins_again_without_coming_back_is_no_loop(events):
    assert loop(*events) is None


NAMES = ["a", "b", "c", "a.x", "b.x"]
EVENT = st.builds(
    lambda source, target, dead: event("new", source, target, dead_letter=dead),
    st.sampled_from([*NAMES, "*", "*.x", "a.*", ">", "b.>"]),
    st.sampled_from(NAMES),
    st.sampled_from([*NAMES, "d"]),
)


def comes_back(events: list[BindingEvent], topics: set[str]) -> bool:
    """By brute force: whether some topic can be reached from itself, whichever topics there are."""
    edges = {
        (topic, output)
        for one in events
        for topic in topics
        for output in outputs(one)
        if source_matches(one.source, topic)
    }
    reached = set(edges)
    while further := {(a, d) for a, b in reached for c, d in edges if b == c} - reached:
        reached |= further
    return any(a == b for a, b in reached)


@given(st.lists(EVENT, min_size=1, max_size=7))
@example([event("one", "a", "b"), event("two", "b", "a")])
def test_bindings_come_in_exactly_as_long_as_no_topic_reaches_itself(events):
    topics = {*NAMES, "d", "elsewhere", "elsewhere.x", "a.later", "b.later.x"}
    there: list[BindingEvent] = []
    for new in events:
        found = find_loop(there, new)
        assert (found is not None) == comes_back([*there, new], topics)
        if found is None:
            there.append(new)
        else:
            assert found.cycle[0] == found.cycle[-1]
            ways = zip(found.cycle[:-1], found.cycle[1:], strict=True)
            for here, following in ways:
                assert any(
                    source_matches(one.source, here) and following in outputs(one) for one in [*there, new]
                )
