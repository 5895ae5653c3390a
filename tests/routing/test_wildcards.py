"""Wildcards over topics, as a binding's source: NATS' rules, beside a consumer's patterns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker import InvalidTopicError
from logbroker.topic_names import check_source, is_wildcard, matches, source_matches

NAMES = ["orders.eu", "orders.eu.de", "orders", "orders-old.eu"]


@pytest.mark.parametrize(
    ("source", "matched"),
    [
        ("orders.*", ["orders.eu"]),
        ("orders.>", ["orders.eu", "orders.eu.de"]),
        ("*.eu", ["orders.eu", "orders-old.eu"]),
        ("*", ["orders"]),
        (">", NAMES),
        ("*.>", ["orders.eu", "orders.eu.de", "orders-old.eu"]),
        ("orders", ["orders"]),
    ],
)
def test_a_star_is_one_token_and_a_greater_sign_is_the_rest(source: str, matched: list[str]) -> None:
    assert [name for name in NAMES if source_matches(source, name)] == matched


def test_a_consumer_s_star_runs_across_dots_and_a_binding_s_does_not() -> None:
    assert matches("orders.*", "orders.eu.de")
    assert not source_matches("orders.*", "orders.eu.de")


@pytest.mark.parametrize("source", ["orders*", "a.b*.c", "a.>.b", "a>", "a.?", "a b.*", ">.a", "é.*", "*.a*"])
def test_a_wildcard_inside_a_token_or_before_the_end_is_refused(source: str) -> None:
    with pytest.raises(InvalidTopicError):
        check_source(source)


@pytest.mark.parametrize("source", [7, None, "", "a b", "__journal"])
def test_what_is_no_wildcard_must_be_a_topic_s_name(source: object) -> None:
    with pytest.raises(InvalidTopicError):
        check_source(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("wildcard", [">", "*", "*.>", "__state.*", "*.x"])
def test_internal_topics_are_never_matched(wildcard: str) -> None:
    assert not source_matches(wildcard, "__journal")
    assert not source_matches(wildcard, "__state.x")


TOKEN = st.sampled_from(["a", "b", "", "a-b"])
NAME = st.lists(TOKEN, min_size=1, max_size=4).map(".".join)
SOURCE = st.builds(
    lambda tokens, more: ".".join([*tokens, *more]),
    st.lists(TOKEN | st.just("*"), max_size=3),
    st.sampled_from([[], [">"], ["*"]]),
).filter(bool)


def token_by_token(source: list[str], name: list[str]) -> bool:
    if source == [">"]:
        return len(name) > 0
    if not source or not name:
        return not source and not name
    return source[0] in ("*", name[0]) and token_by_token(source[1:], name[1:])


@given(SOURCE, NAME)
def test_matching_goes_token_by_token(source: str, name: str) -> None:
    assert source_matches(source, name) == token_by_token(source.split("."), name.split("."))


@given(NAME)
def test_a_plain_name_matches_itself_alone(name: str) -> None:
    assert not is_wildcard(name)
    assert source_matches(name, name)
    assert not source_matches(name, name + ".x")
