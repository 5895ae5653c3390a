"""Journal events: typed, keyed by what they are about, and refused when they are something else."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage.errors import CorruptBatchError
from logbroker_storage.events import (
    AnyEvent,
    Attempt,
    BindingEvent,
    GroupEvent,
    LogStartEvent,
    NamedProducerEvent,
    OffsetEvent,
    ProducerIdsEvent,
    ShareConfigEvent,
    TopicEvent,
    TopicReach,
    TtlEvent,
    decode_attempts,
    decode_event,
    encode_attempts,
    encode_event,
)

NAME = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=20)
INT = st.integers(0, 2**63 - 1)
SMALL = st.integers(0, 2**31 - 1)

EVENT: st.SearchStrategy[AnyEvent] = st.one_of(
    st.builds(
        TopicEvent,
        name=NAME,
        topic_id=st.binary(min_size=16, max_size=16),
        partitions=SMALL,
        config=st.dictionaries(NAME, NAME, max_size=3),
        created_ms=INT,
        state=st.sampled_from(["live", "deleting"]),
    ),
    st.builds(
        OffsetEvent,
        group=NAME,
        topic=NAME,
        partition=SMALL,
        offset=INT,
        metadata=st.text(max_size=5),
        committed_ms=INT,
    ),
    st.builds(GroupEvent, group=NAME, topics=st.lists(NAME, max_size=3), created_ms=INT),
    st.builds(
        NamedProducerEvent, name=NAME, epoch=SMALL, producer_ids=st.dictionaries(SMALL, INT, max_size=3)
    ),
    st.builds(ProducerIdsEvent, next_producer_id=INT),
    st.builds(ShareConfigEvent, group=NAME, config=st.dictionaries(NAME, NAME, max_size=3)),
    st.builds(LogStartEvent, topic=NAME, partition=SMALL, log_start_offset=INT),
    st.builds(
        BindingEvent,
        name=NAME,
        source=NAME,
        target=NAME,
        dead_letter=NAME,
        created_ms=INT,
        when=st.none() | NAME,
        headers=st.dictionaries(NAME, st.none() | NAME, max_size=2),
        headers_match=st.sampled_from(["all", "any"]),
        transform=st.none() | NAME,
        unrouted=st.booleans(),
        reach=st.lists(
            st.builds(
                TopicReach,
                topic=NAME,
                topic_id=st.binary(min_size=16, max_size=16),
                starts=st.lists(INT, max_size=2),
                routed=st.lists(INT, max_size=2),
            ),
            max_size=2,
        ),
    ),
)


@given(EVENT)
def test_what_is_encoded_decodes_back_to_the_same_type(event):
    decoded = decode_event(encode_event(event))
    assert decoded == event
    assert type(decoded) is type(event)


@given(EVENT, EVENT)
def test_two_events_have_one_key_only_if_they_are_about_the_same_thing(one, other):
    def about(event: AnyEvent) -> tuple[object, ...]:
        parts = ("name", "group", "topic", "partition")
        return (type(event), *(getattr(event, part, None) for part in parts))

    assert (one.key() == other.key()) == (about(one) == about(other))


def test_keys_can_be_made_without_an_event():
    assert OffsetEvent("g", "t", 3, 9, "", 0).key() == OffsetEvent.key_of("g", "t", 3) == b"offset\0g\0t\x003"
    assert TopicEvent("t", bytes(16), 1, {}, 0).key() == TopicEvent.key_of("t")
    assert GroupEvent("g", [], 0).key() == GroupEvent.key_of("g")
    assert NamedProducerEvent("p", 0, {}).key() == NamedProducerEvent.key_of("p")
    assert ProducerIdsEvent(5).key() == ProducerIdsEvent.key_of()
    assert BindingEvent("b", "s", "t", "d", 0).key() == BindingEvent.key_of("b")
    assert ShareConfigEvent("g", {}).key() == ShareConfigEvent.key_of("g")
    assert LogStartEvent("t", 3, 9).key() == LogStartEvent.key_of("t", 3)


def test_a_group_s_prefix_holds_its_offsets_and_not_those_of_a_group_whose_name_begins_alike():
    prefix = OffsetEvent.prefix_of("g")
    assert OffsetEvent.key_of("g", "t", 0).startswith(prefix)
    assert not OffsetEvent.key_of("g2", "t", 0).startswith(prefix)
    assert not LogStartEvent.key_of("t2", 0).startswith(LogStartEvent.prefix_of("t"))


@pytest.mark.parametrize(
    "kind", [TopicEvent, OffsetEvent, GroupEvent, NamedProducerEvent, LogStartEvent, BindingEvent]
)
def test_every_key_of_a_kind_begins_with_its_common_prefix(kind):
    assert kind.KIND.encode() + b"\0" == kind.ALL


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"kind": "unheard of"}),
        msgspec.msgpack.encode({"kind": "ids"}),
        msgspec.msgpack.encode({"kind": "ids", "next_producer_id": "many"}),
        encode_event(ProducerIdsEvent(5))[:-1],
        encode_event(TtlEvent("topic")).replace(b"topic", b"t\x8apic"),
    ],
)
def test_bytes_that_are_no_event_are_an_error_of_their_own(value):
    with pytest.raises(CorruptBatchError):
        decode_event(value)


def test_text_of_an_attempt_that_is_not_utf_8_is_the_same_error():
    attempts = encode_attempts([Attempt(0, 1, 2, 0, False, "reason")])
    with pytest.raises(CorruptBatchError):
        decode_attempts(attempts.replace(b"reason", b"re\x8ason"))


@given(st.binary(max_size=40))
def test_any_bytes_are_an_event_or_that_error(value):
    try:
        decode_event(value)
    except CorruptBatchError:
        pass  # as it should be
