"""Two servers of one directory: the members of a group are with one of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

import logbroker
from logbroker.group_store import Reservation, release_from_network, reserve_for_network
from logbroker_storage.data_directory import DataDirectory

from .raw_client import JOIN_GROUP, OFFSET_COMMIT, RawClient
from .server_process import ServerProcess

LEAVE_GROUP, OFFSET_DELETE, CONSUMER_HEARTBEAT = 13, 47, 68
OK, ELSEWHERE = ErrorCode.none, ErrorCode.coordinator_not_available
SUBSCRIPTION = b"\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff"  # ConsumerProtocolSubscription 0 of no topic
DEADLINE_S = 20.0

Join = Callable[[RawClient], tuple[ErrorCode, str]]


@pytest.fixture
def servers(start_server: Callable[..., ServerProcess], tmp_path: Path) -> list[ServerProcess]:
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("t")
    return [start_server(), start_server()]


@pytest.fixture
def clients(servers: list[ServerProcess]) -> Iterator[tuple[RawClient, RawClient]]:
    one, other = (RawClient(server.port) for server in servers)
    with one, other:
        yield one, other


def classic(client: RawClient) -> tuple[ErrorCode, str]:
    """The error of a join of group ``g``, and the member id."""
    timeouts = {"session_timeout": 10_000, "rebalance_timeout": 10_000}
    protocols = [{"name": "range", "metadata": SUBSCRIPTION}]
    answer = client.send(
        JOIN_GROUP, 3, group_id="g", protocol_type="consumer", protocols=protocols, **timeouts
    )
    return answer.error_code, answer.member_id


def consumer(client: RawClient) -> tuple[ErrorCode, str]:
    member_id = str(uuid.uuid4())
    answer = client.send(
        CONSUMER_HEARTBEAT,
        1,
        group_id="g",
        member_id=member_id,
        rebalance_timeout=10_000,
        subscribed_topic_names=["t"],
        topic_partitions=[],
    )
    return answer.error_code, member_id


PROTOCOLS = pytest.mark.parametrize("join", [classic, consumer])


def joins_in_time(join: Join, client: RawClient) -> bool:
    """Whether a member that tries again gets in."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        error, _ = join(client)
        if error is not ELSEWHERE:
            return error is OK
        time.sleep(0.05)
    return False


def committed(client: RawClient) -> ErrorCode:
    """The error of a commit by somebody who is not in the group."""
    part = {"partition_index": 0, "committed_offset": 0, "committed_leader_epoch": -1}
    topics = [{"name": "t", "partitions": [part]}]
    answer = client.send(OFFSET_COMMIT, 8, group_id="g", generation_id_or_member_epoch=-1, topics=topics)
    ((answered,),) = [topic.partitions for topic in answer.topics]
    return ErrorCode(answered.error_code)


def deleted(client: RawClient) -> Any:
    topics = [{"name": "t", "partitions": [{"partition_index": 0}]}]
    return client.send(OFFSET_DELETE, 0, group_id="g", topics=topics).error_code


@PROTOCOLS
def test_a_member_tries_again_at_the_other_server_until_the_group_is_empty(
    servers: list[ServerProcess], clients: tuple[RawClient, RawClient], join: Join
) -> None:
    """It takes nothing away meanwhile: the library's consumers are kept out by the first one's members."""
    one, other = clients
    error, member_id = classic(one)
    assert error is OK
    assert join(other)[0] is ELSEWHERE
    with (
        logbroker.open(servers[0].data) as broker,
        pytest.raises(logbroker.InvalidRequestError, match="connected to a server"),
    ):
        broker.consumer("t", group="g")
    left = one.send(LEAVE_GROUP, 3, group_id="g", members=[{"member_id": member_id}])
    assert left.error_code is OK
    assert joins_in_time(join, other)
    assert classic(one)[0] is ELSEWHERE


@PROTOCOLS
def test_the_members_of_a_server_that_died_are_taken_in_by_the_other(
    servers: list[ServerProcess], clients: tuple[RawClient, RawClient], join: Join
) -> None:
    one, other = clients
    assert join(one)[0] is OK
    servers[0].kill()
    assert joins_in_time(join, other)


def test_a_groups_offsets_are_not_changed_where_nobody_knows_its_members(
    clients: tuple[RawClient, RawClient],
) -> None:
    one, other = clients
    assert committed(other) is OK
    assert classic(one)[0] is OK
    assert committed(other) is ELSEWHERE
    assert deleted(other) is ELSEWHERE


def test_a_server_gives_back_its_own_reservations_only(servers: list[ServerProcess]) -> None:
    with RawClient(servers[0].port) as client:
        assert classic(client)[0] is OK
        directory = DataDirectory.open(str(servers[0].data))
        try:
            release_from_network(directory, "g")
            assert reserve_for_network(directory, "g") is Reservation.ON_OTHER_SERVER
        finally:
            directory.close()
