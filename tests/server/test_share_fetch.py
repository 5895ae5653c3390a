"""Share sessions, fetches and acknowledgements byte by byte, and what administrators ask about share groups."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

import logbroker
from logbroker.server.server import Server
from logbroker.server.settings import ServerSettings
from logbroker.server.share_groups import LAST_WORDS_S
from logbroker_storage.files import OsFiles
from logbroker_storage.record_batch import HEADER_BYTES, read_header
from logbroker_storage.testing import ManualClock

from ..proof.faults.server_thread import ServerThread
from .raw_client import RawClient, batch, codes, new_name, segment_bytes
from .raw_sharer import (
    ACCEPT,
    FINAL,
    GAP,
    RECORD_LIMIT,
    REJECT,
    RELEASE,
    RENEW,
    SHARE_DESCRIBE,
    SHARE_FETCH,
    SHARE_HEARTBEAT,
    RawSharer,
)
from .server_process import ServerProcess

OK = ErrorCode.none
DESCRIBE_OFFSETS, ALTER_OFFSETS, DELETE_OFFSETS = 90, 91, 92
SHORT_LEASE_S = 0.5
PROMPT_S = 15.0  # on a busy machine; who waits for nothing waits for 20 s and more


@pytest.fixture(scope="module")
def broker(shared: ServerProcess) -> Iterator[logbroker.Broker]:
    """The server's directory, opened in this process beside it."""
    with logbroker.open(shared.data) as broker:
        yield broker


class Desk:
    """A topic and a queue subscription of its own, and members of that share group."""

    def __init__(
        self, server: ServerProcess | ServerThread, broker: logbroker.Broker, client: RawClient
    ) -> None:
        self.server, self.broker, self.client = server, broker, client
        self.topic, self.group = new_name(), new_name("group")
        self.topic_id = uuid.UUID(int=0)
        self.sharers: list[RawSharer] = []

    def queue(self, partitions: int = 1, **options: Any) -> Desk:
        self.topic_id = self.client.create(self.topic, partitions)
        self.broker.create_subscription(self.group, topic=self.topic, **options)
        return self

    def put(self, *sizes: int, partition: int = 0, value: bytes = b"x") -> Desk:
        """Batches of so many records each."""
        for size in sizes:
            answer = self.client.produce(self.topic, batch(*[value] * size), partition=partition)
            assert answer.error_code is OK
        return self

    def sharer(self, **options: Any) -> RawSharer:
        made = RawSharer(self.server.port, self.group, self.topic, self.topic_id, **options)
        self.sharers.append(made)
        return made

    @property
    def lag(self) -> int:
        return self.broker.subscription(self.group).lag


@pytest.fixture
def desk(shared: ServerProcess, broker: logbroker.Broker, client: RawClient) -> Iterator[Desk]:
    desk = Desk(shared, broker, client)
    yield desk
    for sharer in desk.sharers:
        sharer.close()


def stored(desk: Desk) -> bytes:
    """The batches in partition 0, without what is reserved behind them."""
    found = segment_bytes(desk.server.data, desk.topic)
    position = 0
    while any(found[position : position + HEADER_BYTES]):
        position += read_header(found, position).size_bytes
    return found[:position]


# Fetching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_acquired_batches_go_out_as_they_lie_on_the_disk(desk: Desk, version: int):
    desk.queue().put(3, 2)
    found = desk.sharer(version=version).fetch()
    assert found.ranges == [(0, 4, 1)]
    assert found.records == stored(desk)
    assert found.lock_ms == 30_000


def test_nobody_else_gets_what_is_acquired(desk: Desk):
    desk.queue().put(3)
    assert desk.sharer().fetch().ranges == [(0, 2, 1)]
    assert desk.sharer().fetch().parts == {}


def test_a_strict_fetch_acquires_no_more_records_than_it_asks_for(desk: Desk):
    desk.queue().put(10)
    sharer = desk.sharer()
    assert sharer.fetch(max_records=4, share_acquire_mode=RECORD_LIMIT).ranges == [(0, 3, 1)]
    assert sharer.fetch(max_records=4, share_acquire_mode=RECORD_LIMIT).ranges == [(4, 7, 1)]
    other = desk.sharer().fetch(max_records=4, share_acquire_mode=RECORD_LIMIT)
    assert other.ranges == [(8, 9, 1)]
    assert read_header(other.records).record_count == 10, "whole batches go out, whatever is acquired of them"


@pytest.mark.parametrize("version", [1, 2])
def test_other_fetches_take_the_whole_of_the_last_batch(desk: Desk, version: int):
    desk.queue().put(3, 10, 5)
    sharer = desk.sharer(version=version)
    assert sharer.fetch(max_records=4).ranges == [(0, 12, 1)]
    assert sharer.fetch(max_records=4).ranges == [(13, 17, 1)]


def test_no_more_batches_are_acquired_than_fit(desk: Desk):
    desk.queue().put(5, 5, 5)
    size = len(stored(desk)) // 3
    sharer = desk.sharer()
    assert sharer.fetch(max_bytes=2 * size).ranges == [(0, 9, 1)]
    assert sharer.fetch(max_bytes=1).ranges == [(10, 14, 1)], "one batch comes, however large"


def test_of_what_is_given_back_no_more_is_acquired_than_fits(desk: Desk):
    desk.queue().put(5, 5, 5)
    size = len(stored(desk)) // 3
    sharer = desk.sharer()
    assert sharer.fetch().ranges == [(0, 14, 1)]
    assert sharer.acknowledge(0, [(0, 2, RELEASE), (6, 14, RELEASE)]) is OK
    assert sharer.fetch(max_bytes=size).ranges == [(0, 2, 2)]
    found = sharer.fetch(max_bytes=size)
    assert (found.ranges, read_header(found.records).base_offset) == ([(6, 9, 2)], 5)
    assert sharer.fetch(max_bytes=size).ranges == [(10, 14, 2)]


def test_ranges_are_no_longer_than_the_client_likes(desk: Desk):
    desk.queue().put(7)
    assert desk.sharer().fetch(batch_size=3).ranges == [(0, 2, 1), (3, 5, 1), (6, 6, 1)]


def test_messages_with_other_delivery_counts_are_ranges_of_their_own(desk: Desk):
    desk.queue().put(4, 2)
    sharer = desk.sharer()
    sharer.fetch(max_records=4)
    assert sharer.acknowledge(0, [(1, 2, RELEASE)]) is OK
    assert sharer.fetch().ranges == [(1, 2, 2), (4, 5, 1)]


def test_what_the_filter_refuses_is_in_the_bytes_but_not_acquired(desk: Desk):
    desk.queue(filter='value != "no"')
    for value in (b"no", b"yes", b"no"):
        desk.put(1, value=value)
    desk.client.produce(desk.topic, batch(b"no", b"yes", b"no", b"yes"))
    found = desk.sharer().fetch()
    assert found.ranges == [(1, 1, 1), (4, 4, 1), (6, 6, 1)]
    assert b"no" in found.records
    assert len(found.records) < len(stored(desk)), "batches of nothing else stay"


def test_a_search_among_what_the_filter_refuses_ends_with_the_time_that_was_given(desk: Desk):
    desk.queue(filter='value != "no"').put(*[1000] * 8, value=b"no").put(1, value=b"yes")
    sharer = desk.sharer()
    lags = [desk.lag]
    while not (found := sharer.fetch(max_records=500)).ranges:
        lags.append(desk.lag)
    assert found.ranges == [(8000, 8000, 1)]
    assert len(lags) > 3
    assert lags == sorted(lags, reverse=True), "a fetch goes on where the one before left off"


def test_a_partition_is_served_that_was_not_before(desk: Desk):
    """So that one that is always full does not keep the others from their turn."""
    desk.queue(partitions=2).put(5).put(5, partition=1)
    sharer = desk.sharer()
    limits = {"max_records": 1, "share_acquire_mode": RECORD_LIMIT}
    turns = [list(sharer.fetch([0, 1] if not turn else [], **limits).parts) for turn in range(4)]
    assert turns == [[0], [1], [0], [1]]


def test_a_paused_group_gets_nothing(desk: Desk):
    desk.queue().put(1)
    desk.broker.pause_subscription(desk.group)
    sharer = desk.sharer()
    assert sharer.fetch().parts == {}
    sharer.begin_fetch(max_wait=10_000)
    desk.broker.resume_subscription(desk.group)
    assert sharer.finish_fetch().ranges == [(0, 0, 1)]


def test_who_asks_for_no_records_gets_none_and_does_not_wait(desk: Desk):
    desk.queue().put(1)
    sharer = desk.sharer()
    began = time.monotonic()
    assert sharer.fetch(max_records=0, max_wait=20_000).parts == {}
    assert sharer.fetch(max_bytes=0, max_wait=20_000).parts == {}
    assert time.monotonic() - began < PROMPT_S
    assert desk.sharer().fetch().ranges == [(0, 0, 1)]


# Waiting --------------------------------------------------------------------------------------------------------


def test_a_fetch_that_finds_nothing_waits_as_long_as_it_may(desk: Desk):
    sharer = desk.queue().sharer()
    began = time.monotonic()
    assert sharer.fetch(max_wait=400).parts == {}
    assert 0.39 <= time.monotonic() - began < 0.4 + PROMPT_S


def test_a_record_that_comes_ends_the_wait(desk: Desk):
    sharer = desk.queue().sharer()
    sharer.begin_fetch(max_wait=20_000)
    time.sleep(0.1)
    began = time.monotonic()
    desk.put(1)
    assert sharer.finish_fetch().ranges == [(0, 0, 1)]
    assert time.monotonic() - began < PROMPT_S


def test_a_message_that_a_member_or_an_embedded_consumer_gives_back_ends_the_wait(desk: Desk):
    desk.queue().put(1)
    one, other = desk.sharer(), desk.sharer()
    one.fetch()
    other.begin_fetch(max_wait=20_000)
    time.sleep(0.1)
    assert one.acknowledge(0, [(0, 0, RELEASE)]) is OK
    assert other.finish_fetch().ranges == [(0, 0, 2)]
    assert other.acknowledge(0, [(0, 0, RELEASE)]) is OK
    with desk.broker.queue(desk.topic, subscription=desk.group) as queue:
        message = queue.receive(timeout=10)
        one.begin_fetch(max_wait=20_000)
        time.sleep(0.1)
        message.release()
        assert one.finish_fetch().ranges == [(0, 0, 4)]


def test_the_end_of_a_lease_ends_the_wait(desk: Desk):
    desk.queue(lease=SHORT_LEASE_S).put(1)
    one, other = desk.sharer(), desk.sharer()
    one.fetch()
    began = time.monotonic()
    assert other.fetch(max_wait=20_000).ranges == [(0, 0, 2)]
    assert time.monotonic() - began < SHORT_LEASE_S + PROMPT_S


def test_a_fetch_waits_for_as_many_bytes_as_it_asks_for(desk: Desk):
    desk.queue().put(1)
    sharer = desk.sharer()
    size = len(stored(desk))
    began = time.monotonic()
    assert sharer.fetch(max_wait=300, min_bytes=2 * size).parts == {}
    assert time.monotonic() - began >= 0.29
    sharer.begin_fetch(max_wait=20_000, min_bytes=2 * size)
    time.sleep(0.1)
    desk.put(1)
    assert sharer.finish_fetch().ranges == [(0, 1, 1)]


def test_what_was_given_back_waits_for_no_more_to_come(desk: Desk):
    desk.queue().put(1)
    sharer = desk.sharer()
    sharer.fetch()
    sharer.acknowledge(0, [(0, 0, RELEASE)])
    assert sharer.fetch(max_wait=20_000, min_bytes=1 << 20).ranges == [(0, 0, 2)]


def test_a_group_that_is_deleted_ends_the_wait(desk: Desk):
    sharer = desk.queue().sharer()
    sharer.begin_fetch(max_wait=20_000)
    time.sleep(0.1)
    desk.broker.delete_subscription(desk.group)
    assert sharer.finish_fetch().error is ErrorCode.group_id_not_found
    assert sharer.heartbeat(1).error_code is ErrorCode.unknown_member_id


def test_a_group_that_is_renamed_gets_back_what_its_members_held_under_the_old_name(desk: Desk):
    desk.queue().put(2)
    sharer = desk.sharer()
    sharer.fetch()
    old, desk.group = desk.group, f"{desk.group}-renamed"
    desk.broker.rename_subscription(old, desk.group)
    assert sharer.fetch().error is ErrorCode.group_id_not_found
    sharer.close()
    assert desk.sharer().fetch(max_wait=5000).ranges == [(0, 1, 2)]


# Acknowledging --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_each_offset_becomes_what_its_type_says(desk: Desk, version: int):
    desk.queue().put(6)
    sharer = desk.sharer(version=version)
    sharer.fetch()
    assert sharer.acknowledge(0, [(0, 3, [ACCEPT, RELEASE, REJECT, GAP]), (5, 5, RELEASE)]) is OK
    assert sharer.fetch().ranges == [(1, 1, 2), (5, 5, 2)]
    assert sharer.acknowledge(0, [(1, 1, ACCEPT), (4, 5, ACCEPT)]) is OK
    assert desk.lag == 0


def test_a_fetch_acknowledges_before_it_acquires(desk: Desk):
    desk.queue().put(2)
    sharer = desk.sharer()
    sharer.fetch()
    found = sharer.fetch(acknowledge=[(0, 0, ACCEPT), (1, 1, RELEASE)])
    assert (found.parts[0].acknowledge_error, found.ranges) == (OK, [(1, 1, 2)])


def test_an_acknowledgement_is_answered_at_once_even_if_nothing_is_acquired(desk: Desk):
    desk.queue().put(2)
    sharer = desk.sharer()
    sharer.fetch()
    began = time.monotonic()
    found = sharer.fetch(acknowledge=[(0, 1, ACCEPT)], max_wait=20_000)
    assert (found.parts[0].acknowledge_error, found.ranges) == (OK, [])
    assert time.monotonic() - began < PROMPT_S
    assert desk.lag == 0


@pytest.mark.parametrize(
    "batches",
    [
        [(0, 3, ACCEPT)],
        [(0, 0, ACCEPT), (7, 7, ACCEPT)],
        [(0, 1 << 62, ACCEPT)],
        [(0, 0, RELEASE), (3, 3, REJECT)],
    ],
    ids=["one more", "another", "to the end of time", "of several types"],
)
def test_of_what_is_not_all_in_the_members_hands_nothing_is_settled(desk: Desk, batches: Any):
    desk.queue().put(3)
    sharer = desk.sharer()
    sharer.fetch()
    assert sharer.acknowledge(0, batches) is ErrorCode.invalid_record_state
    assert desk.lag == 3
    assert desk.sharer().fetch().parts == {}, "all are still in the first member's hands"
    assert sharer.acknowledge(0, [(0, 2, ACCEPT)]) is OK


def test_nobody_settles_what_another_member_holds(desk: Desk):
    desk.queue().put(1)
    one, other = desk.sharer(), desk.sharer()
    one.fetch()
    other.fetch()
    assert other.acknowledge(0, [(0, 0, ACCEPT)]) is ErrorCode.invalid_record_state
    assert one.acknowledge(0, [(0, 0, ACCEPT)]) is OK
    assert one.acknowledge(0, [(0, 0, ACCEPT)]) is ErrorCode.invalid_record_state


def test_a_lease_that_is_over_can_no_longer_be_acknowledged(desk: Desk):
    desk.queue(lease=SHORT_LEASE_S).put(1)
    sharer = desk.sharer()
    sharer.fetch()
    time.sleep(SHORT_LEASE_S + 0.05)
    assert sharer.acknowledge(0, [(0, 0, ACCEPT)]) is ErrorCode.invalid_record_state
    assert desk.lag == 1


def test_one_partitions_error_does_not_concern_the_others(desk: Desk):
    desk.queue(partitions=2).put(1).put(1, partition=1)
    sharer = desk.sharer()
    sharer.fetch([0, 1])
    sent = {
        number: [{"first_offset": 0, "last_offset": last, "acknowledge_types": [ACCEPT]}]
        for number, last in ((0, 5), (1, 0))
    }
    parts = [{"partition_index": number, "acknowledgement_batches": found} for number, found in sent.items()]
    answer = sharer.client.send(
        79,
        2,
        **sharer.member,
        share_session_epoch=sharer.epoch,
        topics=[{"topic_id": desk.topic_id, "partitions": parts}],
    )
    ((first, second),) = [topic.partitions for topic in answer.responses]
    assert (first.error_code, second.error_code) == (ErrorCode.invalid_record_state, OK)
    assert desk.lag == 1


@pytest.mark.parametrize(
    "batches",
    [
        [(2, 1, ACCEPT)],
        [(0, 1, [ACCEPT] * 3)],
        [(0, 1, 9)],
        [(0, 1, ACCEPT), (1, 2, ACCEPT)],
        [(0, 1, RENEW)],
    ],
    ids=["backwards", "too many types", "no such type", "twice", "renewal that is not announced"],
)
def test_what_is_no_acknowledgement_is_refused_and_changes_nothing(desk: Desk, batches: Any):
    desk.queue().put(3)
    sharer = desk.sharer()
    sharer.fetch()
    assert sharer.acknowledge(0, batches) is ErrorCode.invalid_request
    found = sharer.fetch(acknowledge=batches)
    assert found.parts[0].acknowledge_error is ErrorCode.invalid_request
    assert desk.lag == 3


def test_a_renewal_holds_messages_for_another_lease(tmp_path: Path):
    clock = ManualClock(int(time.time() * 1000))  # which the records have too
    server = ServerThread(str(tmp_path / "data"), OsFiles(), clock).start()
    with logbroker.open(tmp_path / "data", clock=clock) as broker, RawClient(server.port) as client:
        desk = Desk(server, broker, client).queue(lease=1.0).put(2)
        with closing(desk.sharer()) as sharer, closing(desk.sharer()) as other:
            sharer.fetch()
            for _ in range(4):
                clock.advance(ms=400)
                assert sharer.acknowledge(0, [(0, 0, RENEW)], is_renew_ack=True) is OK
            assert other.fetch().ranges == [(1, 1, 2)]
            assert sharer.acknowledge(0, [(0, 0, ACCEPT)]) is OK
    server.stop()


def test_a_fetch_that_renews_asks_for_no_records(desk: Desk):
    desk.queue().put(1)
    sharer = desk.sharer()
    sharer.fetch()
    nothing = {"max_records": 0, "max_bytes": 0, "min_bytes": 0, "max_wait": 0}
    found = sharer.fetch(acknowledge=[(0, 0, RENEW)], is_renew_ack=True, **nothing)
    assert found.parts[0].acknowledge_error is OK
    refused = sharer.fetch(acknowledge=[(0, 0, RENEW)], is_renew_ack=True, epoch=sharer.epoch)
    assert refused.error is ErrorCode.invalid_request


# Sessions -------------------------------------------------------------------------------------------------------


def test_the_epochs_of_a_session_come_in_turn(desk: Desk):
    sharer = desk.queue().sharer()
    assert sharer.fetch(epoch=1).error is ErrorCode.share_session_not_found
    assert sharer.fetch().error is OK
    assert sharer.fetch(epoch=2).error is ErrorCode.invalid_share_session_epoch
    assert sharer.acknowledge(0, [(0, 0, ACCEPT)], epoch=0) is ErrorCode.invalid_share_session_epoch
    assert sharer.acknowledge(0, [(0, 0, ACCEPT)], epoch=7) is ErrorCode.invalid_share_session_epoch
    assert sharer.fetch(epoch=-2).error is ErrorCode.invalid_share_session_epoch
    assert sharer.fetch().error is OK


def test_a_session_remembers_its_partitions_until_they_are_forgotten(desk: Desk):
    desk.queue(partitions=2).put(1).put(1, partition=1)
    sharer = desk.sharer()
    assert list(sharer.fetch([0]).parts) == [0]
    assert list(sharer.fetch([1]).parts) == [1]
    desk.put(1).put(1, partition=1)
    forgotten = [{"topic_id": desk.topic_id, "partitions": [0]}]
    assert list(sharer.fetch([], forgotten_topics_data=forgotten).parts) == [1]


def test_a_session_that_begins_has_nothing_to_acknowledge(desk: Desk):
    sharer = desk.queue().sharer()
    assert sharer.fetch(acknowledge=[(0, 0, ACCEPT)]).error is ErrorCode.invalid_request


def test_a_session_that_begins_again_gives_back_what_the_one_before_held(desk: Desk):
    desk.queue().put(2)
    sharer = desk.sharer()
    assert sharer.fetch().ranges == [(0, 1, 1)]
    assert sharer.fetch(epoch=0).ranges == [(0, 1, 2)]


def test_of_sessions_that_begin_at_the_same_time_one_goes_on(desk: Desk):
    desk.queue().put(3)
    one, other = desk.sharer(), desk.sharer()
    other.member = one.member
    for _ in range(20):
        for sharer in (one, other):
            sharer.begin_fetch(epoch=0)
        assert {one.finish_fetch().error, other.finish_fetch().error} == {OK}
    one.epoch = other.epoch = 1
    errors = {one.fetch().error, other.fetch().error}
    assert errors == {OK, ErrorCode.invalid_share_session_epoch}


@pytest.mark.parametrize("by", ["fetch", "acknowledge"])
def test_a_session_ends_with_what_it_acknowledges_last_and_gives_back_the_rest(desk: Desk, by: str):
    desk.queue().put(3)
    sharer = desk.sharer()
    sharer.fetch()
    if by == "fetch":
        assert sharer.fetch(acknowledge=[(1, 1, ACCEPT)], epoch=FINAL).parts[0].acknowledge_error is OK
    else:
        assert sharer.acknowledge(0, [(1, 1, ACCEPT)], epoch=FINAL) is OK
    assert desk.sharer().fetch().ranges == [(0, 0, 2), (2, 2, 2)]
    assert sharer.fetch().error is ErrorCode.share_session_not_found


def test_a_fetch_that_waits_is_answered_when_its_session_ends(desk: Desk):
    sharer = desk.queue().sharer()
    began = time.monotonic()
    sharer.begin_fetch(max_wait=20_000)
    sharer.begin_fetch(epoch=FINAL)
    assert (sharer.finish_fetch().parts, sharer.finish_fetch().error) == ({}, OK)
    sharer.epoch = 0
    sharer.begin_fetch(max_wait=20_000)
    sharer.begin_fetch(epoch=0)
    assert [sharer.finish_fetch().error for _ in range(2)] == [OK, OK]
    assert time.monotonic() - began < PROMPT_S


def test_a_connection_that_is_lost_gives_back_what_its_session_held(desk: Desk):
    desk.queue().put(3)
    sharer = desk.sharer()
    sharer.fetch()
    other = desk.sharer()
    other.begin_fetch(max_wait=20_000)
    sharer.close()
    assert other.finish_fetch().ranges == [(0, 2, 2)]


def test_a_connection_that_is_lost_while_its_fetch_waits_takes_nothing_along(desk: Desk):
    sharer = desk.queue().sharer()
    sharer.begin_fetch(max_wait=20_000)
    time.sleep(0.1)
    sharer.close()
    desk.put(1)
    assert desk.sharer().fetch(max_wait=5000).ranges[0][:2] == (0, 0)


def test_a_member_that_has_left_may_acknowledge_for_a_while(desk: Desk):
    """librdkafka leaves on one connection, and acknowledges its last messages on another at the same time."""
    desk.queue().put(2)
    sharer = desk.sharer()
    sharer.fetch()
    assert sharer.heartbeat(-1).error_code is OK
    assert sharer.acknowledge(0, [(0, 0, ACCEPT)]) is OK
    other = desk.sharer()
    began = time.monotonic()
    assert other.fetch(max_wait=29_000).ranges == [(1, 1, 2)]
    assert time.monotonic() - began < LAST_WORDS_S + PROMPT_S
    assert sharer.acknowledge(0, [(1, 1, ACCEPT)]) is ErrorCode.share_session_not_found


def test_a_member_that_is_silent_for_its_session_is_out_and_what_it_held_goes_to_others(
    start_server: Callable[..., ServerProcess],
):
    server = start_server("--group-session", "2")
    with logbroker.open(server.data) as broker, RawClient(server.port) as client:
        desk = Desk(server, broker, client).queue().put(1)
        began = time.monotonic()
        silent = desk.sharer()
        silent.fetch()
        with broker.queue(desk.topic, subscription=desk.group) as queue:  # in no session, which could end too
            assert queue.receive(timeout=20).delivery_count == 2, "long before the lease of 30 s ends"
        assert time.monotonic() - began > 1.9
        assert silent.heartbeat(1).error_code is ErrorCode.unknown_member_id
        assert "is removed" in server.log()
        for sharer in desk.sharers:
            sharer.close()


# What is not there ----------------------------------------------------------------------------------------------


def test_a_group_that_is_not_there_is_not_found(desk: Desk):
    sharer = desk.queue().sharer()
    for group_id in (None, "nobody"):
        answer = desk.client.send(
            SHARE_FETCH, 2, **(sharer.member | {"group_id": group_id}), share_session_epoch=0
        )
        assert answer.error_code is ErrorCode.group_id_not_found


@pytest.mark.parametrize("member_id", [None, "", "\x00", "m" * 300])
def test_a_member_needs_an_id_that_can_be_printed(desk: Desk, member_id: str | None):
    desk.queue()
    answer = desk.client.send(SHARE_FETCH, 2, group_id=desk.group, member_id=member_id, share_session_epoch=0)
    assert answer.error_code is ErrorCode.invalid_request


def test_partitions_that_are_not_there_or_not_the_groups_have_errors(desk: Desk):
    desk.queue().put(1)
    sharer = desk.sharer()
    found = sharer.fetch([0, 9])
    assert found.parts[9].error is ErrorCode.unknown_topic_or_partition
    assert found.ranges == [(0, 0, 1)]
    sharer.topic_id = uuid.UUID(int=77)
    assert sharer.fetch().parts[0].error is ErrorCode.unknown_topic_id
    sharer.topic_id = desk.client.create(f"{desk.topic}-other")
    assert sharer.fetch().parts[0].error is ErrorCode.unknown_topic_or_partition


def test_a_topic_that_is_deleted_meanwhile_is_an_error_of_its_partitions(desk: Desk):
    sharer = desk.queue().sharer()
    sharer.begin_fetch(max_wait=20_000)
    time.sleep(0.1)
    desk.broker.delete_topic(desk.topic)
    assert sharer.finish_fetch().parts[0].error is ErrorCode.unknown_topic_id


# Other APIs -----------------------------------------------------------------------------------------------------


def test_members_are_described(desk: Desk):
    desk.queue(partitions=2)
    sharer = desk.sharer()
    (group,) = desk.client.send(SHARE_DESCRIBE, 1, group_ids=[desk.group]).groups
    assert (group.group_state, group.assignor_name, group.group_epoch) == ("Stable", "simple", 1)
    (member,) = group.members
    assert member.member_id == sharer.member["member_id"]
    assert member.subscribed_topic_names == (desk.topic,)
    (assigned,) = member.assignment.topic_partitions
    assert (assigned.topic_id, assigned.topic_name, assigned.partitions) == (
        desk.topic_id,
        desk.topic,
        (0, 1),
    )


def test_a_queue_that_only_embedded_consumers_use_is_an_empty_share_group(desk: Desk):
    desk.queue()
    (group,) = desk.client.send(SHARE_DESCRIBE, 1, group_ids=[desk.group]).groups
    assert (group.error_code, group.group_state, group.members) == (OK, "Empty", ())


def test_a_stream_subscription_and_a_consumer_group_are_no_share_groups(desk: Desk):
    desk.queue()
    desk.broker.create_subscription(f"{desk.group}-stream", topic=desk.topic, kind="stream")
    for name in (f"{desk.group}-stream", "nobody"):
        (group,) = desk.client.send(SHARE_DESCRIBE, 1, group_ids=[name]).groups
        assert (group.error_code, group.group_state) == (ErrorCode.group_id_not_found, "Dead")
    answer = desk.client.send(
        SHARE_HEARTBEAT,
        1,
        group_id=f"{desk.group}-stream",
        member_id="m",
        subscribed_topic_names=[desk.topic],
    )
    assert answer.error_code is ErrorCode.group_id_not_found


@pytest.mark.parametrize("protocol", ["classic", "consumer", "offsets only", "embedded"])
def test_the_name_of_a_consumer_group_is_no_share_groups(desk: Desk, protocol: str):
    """Not even of one whose first member has only just joined, and has read nothing."""
    desk.topic_id = desk.client.create(desk.topic)
    embedded = None
    if protocol == "classic":
        subscription = {"name": "range", "metadata": b"\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff"}
        joined = desk.client.send(
            11,
            3,
            group_id=desk.group,
            session_timeout=10_000,
            rebalance_timeout=10_000,
            protocol_type="consumer",
            protocols=[subscription],
        )
        assert joined.error_code is OK
    elif protocol == "consumer":
        beat = {"member_id": "m", "rebalance_timeout": 10_000, "topic_partitions": []}
        wanted = {"group_id": desk.group, "subscribed_topic_names": [desk.topic]}
        assert desk.client.send(68, 1, **beat, **wanted).error_code is OK
    elif protocol == "offsets only":
        desk.broker.reset_group(desk.group, "earliest", topics=[desk.topic])
    else:
        embedded = desk.broker.consumer(desk.topic, group=desk.group)
        embedded.poll(1, 0)
    answer = desk.client.send(
        SHARE_HEARTBEAT, 1, group_id=desk.group, member_id="m", subscribed_topic_names=[desk.topic]
    )
    assert answer.error_code is ErrorCode.group_id_not_found
    assert desk.group not in desk.broker.subscriptions()
    if embedded is not None:
        embedded.close()


def test_a_share_group_is_neither_a_classic_nor_a_consumer_group(desk: Desk):
    desk.queue()
    (described,) = desk.client.send(15, 6, groups=[desk.group]).groups
    assert described.error_code is ErrorCode.group_id_not_found
    (described,) = desk.client.send(15, 5, groups=[desk.group]).groups
    assert (described.error_code, described.group_state) == (OK, "Dead")
    (described,) = desk.client.send(69, 1, group_ids=[desk.group]).groups
    assert described.error_code is ErrorCode.group_id_not_found
    part = {"partition_index": 0, "committed_offset": 0, "committed_leader_epoch": -1}
    committed = desk.client.send(
        8,
        9,
        group_id=desk.group,
        generation_id_or_member_epoch=-1,
        topics=[{"name": desk.topic, "partitions": [part]}],
    )
    assert codes(committed) == {ErrorCode.group_id_not_found}
    producer_id, producer_epoch = desk.client.new_producer(desk.group)
    committed = desk.client.send(
        28,
        3,
        transactional_id=desk.group,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        group_id=desk.group,
        generation_id=-1,
        topics=[{"name": desk.topic, "partitions": [part]}],
    )
    assert codes(committed) == {ErrorCode.group_id_not_found}


@pytest.mark.parametrize("name", ["a b", "__journal", "x" * 300, "orders.*"])
def test_a_topic_that_cannot_be_is_refused_and_makes_no_group(desk: Desk, name: str):
    answer = desk.client.send(
        SHARE_HEARTBEAT, 1, group_id=desk.group, member_id="m", subscribed_topic_names=[name]
    )
    assert answer.error_code is ErrorCode.invalid_topic_exception
    assert desk.group not in desk.broker.subscriptions()


def test_members_cannot_read_the_groups_own_dead_letters(desk: Desk):
    desk.queue(dead_letter=f"{desk.topic}.dead")
    answer = desk.client.send(
        SHARE_HEARTBEAT, 1, group_id=desk.group, member_id="m", subscribed_topic_names=[f"{desk.topic}.dead"]
    )
    assert answer.error_code is ErrorCode.invalid_request


# Offsets --------------------------------------------------------------------------------------------------------


def offsets(desk: Desk, *partitions: int) -> list[tuple[int, int, ErrorCode]]:
    """Start offset, lag and error of each partition."""
    topics = [{"topic_name": desk.topic, "partitions": partitions}]
    (group,) = desk.client.send(
        DESCRIBE_OFFSETS, 1, groups=[{"group_id": desk.group, "topics": topics}]
    ).groups
    assert group.error_code is OK
    return [(part.start_offset, part.lag, part.error_code) for part in group.topics[0].partitions]


def alter(desk: Desk, start_offset: int, topic: str | None = None, partition: int = 0) -> ErrorCode:
    part = {"partition_index": partition, "start_offset": start_offset}
    topics = [{"topic_name": topic or desk.topic, "partitions": [part]}]
    answer = desk.client.send(ALTER_OFFSETS, 0, group_id=desk.group, topics=topics)
    found: ErrorCode = answer.responses[0].partitions[0].error_code if answer.responses else answer.error_code
    return found


def test_the_start_offset_is_that_below_which_all_is_done(desk: Desk):
    desk.queue().put(5)
    sharer = desk.sharer()
    sharer.fetch()
    sharer.acknowledge(0, [(0, 1, ACCEPT), (3, 3, ACCEPT)])
    assert offsets(desk, 0, 7) == [(2, 2, OK), (-1, -1, ErrorCode.unknown_topic_or_partition)]


def test_without_topics_all_of_the_groups_are_described(desk: Desk):
    desk.queue(partitions=2).put(1)
    (group,) = desk.client.send(DESCRIBE_OFFSETS, 1, groups=[{"group_id": desk.group, "topics": None}]).groups
    (topic,) = group.topics
    assert (topic.topic_name, topic.topic_id) == (desk.topic, desk.topic_id)
    assert [(part.start_offset, part.lag) for part in topic.partitions] == [(0, 1), (0, 0)]


def test_offsets_of_a_topic_that_the_group_does_not_read_are_not_there(desk: Desk):
    desk.queue()
    other = f"{desk.topic}-other"
    desk.client.create(other)
    asked = {"group_id": desk.group, "topics": [{"topic_name": other, "partitions": [0]}]}
    (group,) = desk.client.send(DESCRIBE_OFFSETS, 1, groups=[asked]).groups
    (part,) = group.topics[0].partitions
    assert (part.error_code, part.start_offset) == (OK, -1)


def test_offsets_are_altered_while_nobody_is_in_the_group(desk: Desk):
    desk.queue().put(5)
    sharer = desk.sharer()
    assert alter(desk, 3) is ErrorCode.non_empty_group
    sharer.heartbeat(-1)
    assert alter(desk, 3) is OK
    assert offsets(desk, 0) == [(3, 2, OK)]
    assert desk.sharer().fetch().ranges == [(3, 4, 1)]


@pytest.mark.parametrize("start_offset", [-1, 6, 1 << 62])
def test_an_offset_outside_the_log_is_refused(desk: Desk, start_offset: int):
    desk.queue().put(5)
    assert alter(desk, start_offset) is ErrorCode.offset_out_of_range
    assert offsets(desk, 0) == [(0, 5, OK)]


def test_altering_the_offset_of_another_topic_has_the_group_read_it(desk: Desk):
    desk.queue()
    other = f"{desk.topic}-other"
    desk.client.create(other)
    desk.client.produce(other, batch(b"a", b"b"))
    assert alter(desk, 1, topic=other) is OK
    assert desk.broker.subscription(desk.group).topics == [desk.topic, other]
    assert desk.lag == 1
    assert alter(desk, 0, topic=f"{desk.topic}-nowhere") is ErrorCode.unknown_topic_or_partition


def test_deleting_the_offsets_of_a_topic_has_the_group_read_it_no_longer(desk: Desk):
    desk.queue().put(5)
    sharer = desk.sharer()
    sharer.fetch()
    sharer.acknowledge(0, [(0, 2, ACCEPT)])

    def delete(*names: str) -> Any:
        topics = [{"topic_name": name} for name in names]
        return desk.client.send(DELETE_OFFSETS, 0, group_id=desk.group, topics=topics)

    assert delete(desk.topic).error_code is ErrorCode.non_empty_group
    sharer.heartbeat(-1)
    answer = delete(desk.topic, "nowhere")
    assert [topic.error_code for topic in answer.responses] == [OK, ErrorCode.unknown_topic_or_partition]
    found = desk.broker.subscription(desk.group)
    assert (found.topics, found.partitions) == ([], [])
    assert offsets(desk, 0) == [(-1, -1, OK)]
    assert alter(desk, 0) is OK
    assert offsets(desk, 0) == [(0, 5, OK)], "it begins as if it had never read the topic"


def test_a_topic_that_is_read_by_a_pattern_cannot_be_left(desk: Desk):
    desk.client.create(desk.topic)
    desk.broker.create_subscription(desk.group, topic=f"{desk.topic}*")
    answer = desk.client.send(DELETE_OFFSETS, 0, group_id=desk.group, topics=[{"topic_name": desk.topic}])
    (topic,) = answer.responses
    assert topic.error_code is ErrorCode.unknown_topic_or_partition
    assert "pattern" in topic.error_message


def test_offsets_of_a_group_that_is_not_there_are_not_found(desk: Desk):
    desk.client.create(desk.topic)
    (group,) = desk.client.send(DESCRIBE_OFFSETS, 1, groups=[{"group_id": desk.group, "topics": None}]).groups
    assert group.error_code is ErrorCode.group_id_not_found
    assert alter(desk, 0) is ErrorCode.group_id_not_found
    answer = desk.client.send(DELETE_OFFSETS, 0, group_id=desk.group, topics=[{"topic_name": desk.topic}])
    assert answer.error_code is ErrorCode.group_id_not_found


# The server by itself -------------------------------------------------------------------------------------------


def test_the_servers_cleaner_keeps_what_a_queue_has_not_consumed(tmp_path: Path):
    """Also when the server is the only process that has the directory open."""
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        config = {"retention.policy": "consumed", "segment.bytes": 200}
        broker.create_topic("t", config=config)
        broker.create_subscription("slow", topic="t")
        with broker.producer(linger=0) as producer:
            for _ in range(20):
                producer.send("t", b"x" * 100).result(10)
        with broker.consumer("t", group="quick", start="earliest") as consumer:
            assert sum(len(consumer.poll(100, 10)) for _ in range(20)) == 20
            consumer.commit()

    async def clean() -> None:
        server = Server(str(data), ServerSettings(port=0))
        await server.start()
        try:
            assert server._node is not None
            assert await server._node.run(server._node.directory.maintenance.clean)
        finally:
            await server.close()

    asyncio.run(clean())
    with logbroker.open(data) as broker, broker.queue("t", subscription="slow") as queue:
        messages = queue.receive_many(100)
        assert len(messages) == 20
        messages.accept()
    asyncio.run(clean())
    with logbroker.open(data) as broker:
        assert broker.topic("t").partitions[0].log_start_offset > 0
