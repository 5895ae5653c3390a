"""What goes over the wire: every API in every version, and the rules that hold between requests."""

from __future__ import annotations

import re
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

import logbroker
from logbroker.server.apis import APIS, VERSIONS
from logbroker.server.fetch_sessions import MAX_SESSIONS
from logbroker_storage.record_batch import read_header

from .raw_client import (
    ADD_PARTITIONS,
    API_VERSIONS,
    CREATE_TOPICS,
    DELETE_RECORDS,
    FETCH,
    HEARTBEAT,
    INIT_PRODUCER_ID,
    JOIN_GROUP,
    LIST_OFFSETS,
    METADATA,
    OFFSET_COMMIT,
    OFFSET_FETCH,
    OFFSET_FOR_LEADER_EPOCH,
    PRODUCE,
    SYNC_GROUP,
    RawClient,
    batch,
    changed,
    codes,
    fetch_partition,
    framed,
    new_name,
    records_of,
    request_bytes,
    response_of,
    segment_bytes,
)
from .server_process import ServerProcess

OK = ErrorCode.none
READ_COMMITTED = 1
OFFSET_DELETE, DESCRIBE_TOPIC_PARTITIONS = 47, 75
PROMPT_S = 15.0  # an answer that waits for nothing, on a busy machine; else it waits for 20 s
BROKER, TOPIC, GROUP = 4, 2, 32
SUBSCRIPTION = b"\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff"  # ConsumerProtocolSubscription 0 of no topic


@pytest.fixture
def other(shared: ServerProcess) -> Iterator[RawClient]:
    """A second connection."""
    with RawClient(shared.port) as client:
        yield client


# Every API in every version -------------------------------------------------------------------------------------


class World:
    """A topic with three records and a group that has read two, for one request."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.topic = new_name("orders")
        self.group = new_name("readers")
        self.transactional_id = new_name("transaction")
        self.topic_id = client.create(self.topic, 2)
        assert client.produce(self.topic, batch(b"a", b"b", b"c")).error_code is OK
        self.commit(2)

    def commit(self, offset: int) -> None:
        """Of the group, which has no members."""
        self.client.commit(self.group, self.topic, offset)

    def topic_of(self, version: int, first_with_id: int) -> dict[str, Any]:
        return {"topic_id": self.topic_id} if version >= first_with_id else {"name": self.topic}

    def member(self) -> dict[str, Any]:
        """The only member of a group of its own, by the classic protocol, at generation 1."""
        group_id = new_name("members")
        joined = self.client.send(JOIN_GROUP, 3, **joining(group_id))
        member = {
            "group_id": group_id,
            "generation_id": joined.generation_id,
            "member_id": joined.member_id,
        }
        assignment = {"member_id": joined.member_id, "assignment": b"all"}
        assert self.client.send(SYNC_GROUP, 3, **member, assignments=[assignment]).error_code is OK
        return member

    def member_of_consumer_group(self) -> str:
        group_id = new_name("consumers")
        assert self.client.send(68, 1, **self.beat(group_id)).error_code is OK
        return group_id

    def beat(self, group_id: str) -> dict[str, Any]:
        return {
            "group_id": group_id,
            "member_id": str(uuid.uuid4()),
            "rebalance_timeout": 10_000,
            "subscribed_topic_names": [self.topic],
            "topic_partitions": [],
        }

    def share_member(self, *, is_leaving: bool = False) -> dict[str, Any]:
        """The only member of a share group of its own that reads the topic from its beginning."""
        member = {"group_id": new_name("sharers"), "member_id": str(uuid.uuid4())}
        configs = [{"name": "share.auto.offset.reset", "value": "earliest", "config_operation": 0}]
        resource = {"resource_type": GROUP, "resource_name": member["group_id"], "configs": configs}
        assert codes(self.client.send(44, 1, resources=[resource])) == {OK}
        joined = self.client.send(76, 1, **member, subscribed_topic_names=[self.topic])
        assert joined.error_code is OK, joined.error_message
        if is_leaving:
            assert self.client.send(76, 1, **member, member_epoch=-1).error_code is OK
        return member

    def empty_share_group(self) -> str:
        group_id: str = self.share_member(is_leaving=True)["group_id"]
        return group_id

    def claim(self) -> dict[str, Any]:
        """A transactional id with its producer."""
        producer_id, producer_epoch = self.client.new_producer(self.transactional_id)
        return {
            "transactional_id": self.transactional_id,
            "producer_id": producer_id,
            "producer_epoch": producer_epoch,
        }

    def transaction(self) -> dict[str, Any]:
        """The same with a transaction that has begun."""
        claim = self.claim()
        older = {f"v3_and_below_{name}": value for name, value in claim.items()}
        places = [{"name": self.topic, "partitions": [0]}]
        added = self.client.send(ADD_PARTITIONS, 3, **older, v3_and_below_topics=places)
        assert codes(added) == {OK}
        return claim


def joining(group_id: str, member_id: str = "") -> dict[str, Any]:
    return {
        "group_id": group_id,
        "session_timeout": 10_000,
        "rebalance_timeout": 10_000,
        "member_id": member_id,
        "protocol_type": "consumer",
        "protocols": [{"name": "range", "metadata": SUBSCRIPTION}],
    }


@dataclass(frozen=True)
class Row:
    """An API: the versions that are served, a sensible request, and what an answer to it holds."""

    versions: range
    request: Callable[[World, int], dict[str, Any]]
    holds: Callable[[Any], Any]  # something that is true of the answer
    codes: Callable[[int], set[ErrorCode]] = field(default=lambda version: {OK})


def produce_row(world: World, version: int) -> dict[str, Any]:
    topic = world.topic_of(version, 13)
    data = topic | {"partition_data": [{"index": 0, "records": batch(b"d")}]}
    return {"acks": -1, "timeout": 1000, "topic_data": [data]}


def fetch_row(world: World, version: int) -> dict[str, Any]:
    topic = {"topic_id": world.topic_id} if version >= 13 else {"topic": world.topic}
    return {"max_wait": 0, "max_bytes": 1 << 20, "topics": [topic | {"partitions": [fetch_partition(0)]}]}


def list_offsets_row(world: World, version: int) -> dict[str, Any]:
    part = {"partition_index": 0, "timestamp": -1, "current_leader_epoch": 0}
    return {"replica_id": -1, "topics": [{"name": world.topic, "partitions": [part]}]}


def offset_commit_row(world: World, version: int) -> dict[str, Any]:
    part = {"partition_index": 1, "committed_offset": 0, "committed_leader_epoch": -1}
    return {
        "group_id": world.group,
        "generation_id_or_member_epoch": -1,
        "topics": [world.topic_of(version, 10) | {"partitions": [part]}],
    }


def offset_fetch_row(world: World, version: int) -> dict[str, Any]:
    topics = [world.topic_of(version, 10) | {"partition_indexes": [0]}]
    if version < 8:
        return {"group_id": world.group, "topics": topics}
    return {"groups": [{"group_id": world.group, "member_epoch": -1, "topics": topics}]}


def offset_fetch_holds(answer: Any) -> bool:
    topics = answer.groups[0].topics if hasattr(answer, "groups") else answer.topics
    return bool(topics[0].partitions[0].committed_offset == 2)


def leave_row(world: World, version: int) -> dict[str, Any]:
    member = world.member()
    return member | {"members": [{"member_id": member["member_id"]}]}


def add_partitions_row(world: World, version: int) -> dict[str, Any]:
    claim = world.claim() | {"topics": [{"name": world.topic, "partitions": [0]}]}
    if version < 4:
        return {f"v3_and_below_{name}": value for name, value in claim.items()}
    return {"transactions": [claim]}


def txn_offset_commit_row(world: World, version: int) -> dict[str, Any]:
    part = {"partition_index": 0, "committed_offset": 3, "committed_leader_epoch": -1}
    topics = [{"name": world.topic, "partitions": [part]}]
    return world.transaction() | {"group_id": world.group, "generation_id": -1, "topics": topics}


def delete_groups_row(world: World, version: int) -> dict[str, Any]:
    return {"groups_names": [world.group]}


def configs_row(world: World, version: int) -> dict[str, Any]:
    configs = [{"name": "retention.ms", "value": "60000", "config_operation": 0}]
    return {"resources": [{"resource_type": TOPIC, "resource_name": world.topic, "configs": configs}]}


def create_row(world: World, version: int) -> dict[str, Any]:
    topic = {"name": new_name("created"), "num_partitions": 1, "replication_factor": 1}
    return {"topics": [topic], "timeout": 1000}


def delete_topics_row(world: World, version: int) -> dict[str, Any]:
    if version < 6:
        return {"topic_names": [world.topic]}
    return {"topics": [{"name": None, "topic_id": world.topic_id}]}


def leader_epoch_row(world: World, version: int) -> dict[str, Any]:
    part = {"partition": 0, "leader_epoch": 0, "current_leader_epoch": 0}
    return {"replica_id": -1, "topics": [{"topic": world.topic, "partitions": [part]}]}


def markers_row(world: World, version: int) -> dict[str, Any]:
    topics = [{"name": world.topic, "partition_indexes": [0]}]
    return {"markers": [{"producer_id": 4711, "producer_epoch": 0, "topics": topics}]}


def acl() -> dict[str, Any]:
    """Everybody may read a topic."""
    resource = {"resource_type": 2, "resource_name": "orders", "resource_pattern_type": 3}
    return resource | {"principal": "User:*", "host": "*", "operation": 3, "permission_type": 3}


def acl_filter() -> dict[str, Any]:
    """Whatever ACL there is."""
    return {"resource_type_filter": 1, "pattern_type_filter": 1, "operation": 1, "permission_type": 1}


def find_coordinator_row(world: World, version: int) -> dict[str, Any]:
    return {"key": world.group, "coordinator_keys": [world.group]}


def share_fetching(world: World) -> dict[str, Any]:
    return {
        "max_wait": 0,
        "min_bytes": 1,
        "max_bytes": 1 << 20,
        "max_records": 10,
        "batch_size": 10,
        "topics": [{"topic_id": world.topic_id, "partitions": [{"partition_index": 0}]}],
    }


def share_fetch_row(world: World, version: int) -> dict[str, Any]:
    return world.share_member() | share_fetching(world)


def share_fetch_holds(answer: Any) -> bool:
    part = answer.responses[0].partitions[0]
    acquired = [(one.first_offset, one.last_offset, one.delivery_count) for one in part.acquired_records]
    header = read_header(memoryview(part.records))
    return acquired == [(0, 2, 1)] and (header.record_count, header.size_bytes) == (3, len(part.records))


def share_acknowledge_row(world: World, version: int) -> dict[str, Any]:
    member = world.share_member()
    assert codes(world.client.send(78, version, **member, **share_fetching(world))) == {OK}
    accepted = {"first_offset": 0, "last_offset": 2, "acknowledge_types": [1]}
    part = {"partition_index": 0, "acknowledgement_batches": [accepted]}
    return member | {
        "share_session_epoch": 1,
        "topics": [{"topic_id": world.topic_id, "partitions": [part]}],
    }


def share_offsets_row(world: World, version: int) -> dict[str, Any]:
    topics = [{"topic_name": world.topic, "partitions": [0, 1]}]
    return {"groups": [{"group_id": world.empty_share_group(), "topics": topics}]}


def share_offsets_hold(answer: Any) -> bool:
    parts = answer.groups[0].topics[0].partitions
    lags = [getattr(part, "lag", 3 - 3 * part.partition_index) for part in parts]
    return [part.start_offset for part in parts] == [0, 0] and lags == [3, 0]


def find_coordinator_holds(answer: Any) -> bool:
    (found,) = getattr(answer, "coordinators", (answer,))
    return bool(found.node_id == 0 and found.port > 0)


ROWS: dict[int, Row] = {
    PRODUCE: Row(range(3, 14), produce_row, lambda r: r.responses[0].partition_responses[0].base_offset == 3),
    FETCH: Row(range(4, 19), fetch_row, lambda r: r.responses[0].partitions[0].records),
    LIST_OFFSETS: Row(range(1, 12), list_offsets_row, lambda r: r.topics[0].partitions[0].offset == 3),
    METADATA: Row(
        range(14),
        lambda world, version: {"topics": [{"name": world.topic}]},
        lambda r: len(r.topics[0].partitions) == 2 and len(r.brokers) == 1,
    ),
    OFFSET_COMMIT: Row(range(2, 11), offset_commit_row, lambda r: r.topics[0].partitions),
    OFFSET_FETCH: Row(range(1, 11), offset_fetch_row, offset_fetch_holds),
    10: Row(range(7), find_coordinator_row, find_coordinator_holds),
    JOIN_GROUP: Row(
        range(10),
        lambda world, version: joining(new_name("joined")),
        lambda r: r.member_id,
        lambda version: {ErrorCode.member_id_required if version >= 4 else OK},
    ),
    HEARTBEAT: Row(range(5), lambda world, version: world.member(), lambda r: True),
    13: Row(range(6), leave_row, lambda r: True),
    SYNC_GROUP: Row(
        range(6),
        lambda world, version: world.member() | {"protocol_type": "consumer", "protocol_name": "range"},
        lambda r: r.assignment == b"all",
    ),
    15: Row(
        range(7),
        lambda world, version: {"groups": [world.member()["group_id"]]},
        lambda r: r.groups[0].group_state == "Stable" and r.groups[0].members[0].member_assignment == b"all",
    ),
    16: Row(range(6), lambda world, version: {}, lambda r: r.groups),
    API_VERSIONS: Row(
        range(5),
        lambda world, version: {"client_software_name": "raw", "client_software_version": "1"},
        lambda r: len(r.api_keys) == len(ROWS),
    ),
    19: Row(range(2, 8), create_row, lambda r: r.topics),
    20: Row(range(1, 7), delete_topics_row, lambda r: r.responses),
    DELETE_RECORDS: Row(
        range(3),
        lambda world, version: {
            "topics": [{"name": world.topic, "partitions": [{"partition_index": 0, "offset": 2}]}]
        },
        lambda r: r.topics[0].partitions[0].low_watermark == 2,
    ),
    INIT_PRODUCER_ID: Row(
        range(6),
        lambda world, version: {
            "transactional_id": world.transactional_id,
            "transaction_timeout": 60_000,
            "producer_id": -1,
            "producer_epoch": -1,
        },
        lambda r: r.producer_id >= 0 and r.producer_epoch == 0,
    ),
    OFFSET_FOR_LEADER_EPOCH: Row(
        range(2, 5), leader_epoch_row, lambda r: r.topics[0].partitions[0].end_offset == 3
    ),
    ADD_PARTITIONS: Row(range(6), add_partitions_row, lambda r: True),
    25: Row(range(5), lambda world, version: world.claim() | {"group_id": world.group}, lambda r: True),
    26: Row(range(6), lambda world, version: world.transaction() | {"committed": True}, lambda r: True),
    27: Row(range(1, 3), markers_row, lambda r: len(r.markers[0].topics[0].partitions) == 1),
    28: Row(range(6), txn_offset_commit_row, lambda r: r.topics[0].partitions),
    29: Row(
        range(1, 4),
        lambda world, version: acl_filter(),
        lambda r: not r.resources,
        lambda version: {ErrorCode.security_disabled},
    ),
    30: Row(
        range(1, 4),
        lambda world, version: {"creations": [acl()]},
        lambda r: len(r.results) == 1,
        lambda version: {ErrorCode.security_disabled},
    ),
    31: Row(
        range(1, 4),
        lambda world, version: {"filters": [acl_filter()]},
        lambda r: len(r.filter_results) == 1,
        lambda version: {ErrorCode.security_disabled},
    ),
    32: Row(
        range(1, 5),
        lambda world, version: {"resources": [{"resource_type": TOPIC, "resource_name": world.topic}]},
        lambda r: "retention.ms" in {entry.name for entry in r.results[0].configs},
    ),
    33: Row(range(3), configs_row, lambda r: r.responses),
    35: Row(
        range(1, 5),
        lambda world, version: {"topics": [{"topic": world.topic, "partitions": [0]}]},
        lambda r: r.results[0].topics[0].partitions[0].partition_size > 0,
    ),
    37: Row(
        range(4),
        lambda world, version: {"topics": [{"name": world.topic, "count": 3}], "timeout": 1000},
        lambda r: r.results,
    ),
    42: Row(range(3), delete_groups_row, lambda r: r.results),
    43: Row(
        range(3),
        lambda world, version: {
            "election_type": 0,
            "topic_partitions": [{"topic": world.topic, "partitions": [0]}],
        },
        lambda r: r.replica_election_results[0].partition_result[0].partition_id == 0,
        lambda version: {ErrorCode.election_not_needed} | ({OK} if version >= 1 else set()),
    ),
    44: Row(range(2), configs_row, lambda r: r.responses),
    45: Row(
        range(2),
        lambda world, version: {
            "topics": [{"name": world.topic, "partitions": [{"partition_index": 0, "replicas": [0]}]}]
        },
        lambda r: r.responses[0].partitions[0].partition_index == 0,
    ),
    46: Row(range(1), lambda world, version: {"topics": None}, lambda r: not r.topics),
    47: Row(
        range(1),
        lambda world, version: {
            "group_id": world.group,
            "topics": [{"name": world.topic, "partitions": [{"partition_index": 0}]}],
        },
        lambda r: r.topics[0].partitions,
    ),
    48: Row(range(2), lambda world, version: {"components": []}, lambda r: r.entries == ()),
    50: Row(range(1), lambda world, version: {"users": None}, lambda r: not r.results),
    60: Row(range(3), lambda world, version: {"endpoint_type": 1}, lambda r: r.brokers and r.cluster_id),
    61: Row(
        range(1),
        lambda world, version: {"topics": [{"name": world.topic, "partition_indexes": [0]}]},
        lambda r: r.topics[0].partitions,
    ),
    65: Row(
        range(1),
        lambda world, version: {"transactional_ids": [world.transaction()["transactional_id"]]},
        lambda r: r.transaction_states[0].transaction_state == "Ongoing",
    ),
    66: Row(
        range(3),
        lambda world, version: {"state_filters": ["Ongoing"], "duration_filter": -1} if world.claim() else {},
        lambda r: True,
    ),
    68: Row(
        range(2), lambda world, version: world.beat(new_name("consumers")), lambda r: r.member_epoch == 1
    ),
    69: Row(
        range(2),
        lambda world, version: {"group_ids": [world.member_of_consumer_group()]},
        lambda r: len(r.groups[0].members) == 1,
    ),
    74: Row(range(2), lambda world, version: {}, lambda r: hasattr(r, "config_resources")),
    76: Row(
        range(1, 2),
        lambda world, version: {
            "group_id": new_name("sharers"),
            "member_id": str(uuid.uuid4()),
            "subscribed_topic_names": [world.topic],
        },
        lambda r: r.member_epoch == 1 and r.assignment.topic_partitions[0].partitions == (0, 1),
    ),
    77: Row(
        range(1, 2),
        lambda world, version: {"group_ids": [world.share_member()["group_id"]]},
        lambda r: r.groups[0].group_state == "Stable" and len(r.groups[0].members) == 1,
    ),
    78: Row(range(1, 3), share_fetch_row, share_fetch_holds),
    79: Row(range(1, 3), share_acknowledge_row, lambda r: len(r.responses[0].partitions) == 1),
    90: Row(range(2), share_offsets_row, share_offsets_hold),
    91: Row(
        range(1),
        lambda world, version: {
            "group_id": world.empty_share_group(),
            "topics": [
                {"topic_name": world.topic, "partitions": [{"partition_index": 0, "start_offset": 2}]}
            ],
        },
        lambda r: r.responses[0].topic_id is not None,
    ),
    92: Row(
        range(1),
        lambda world, version: {
            "group_id": world.empty_share_group(),
            "topics": [{"topic_name": world.topic}],
        },
        lambda r: r.responses[0].topic_id is not None,
    ),
    DESCRIBE_TOPIC_PARTITIONS: Row(
        range(1),
        lambda world, version: {"topics": [{"name": world.topic}], "cursor": None},
        lambda r: len(r.topics[0].partitions) == 2,
    ),
}


def test_there_is_a_row_for_every_api_in_every_version():
    assert {key: row.versions for key, row in ROWS.items()} == VERSIONS


@pytest.mark.parametrize(
    ("api_key", "version"),
    [
        pytest.param(key, version, id=f"{APIS[key].name}-{version}")
        for key, versions in VERSIONS.items()
        for version in versions
    ],
)
def test_a_request_is_answered(client: RawClient, api_key: int, version: int):
    row = ROWS[api_key]
    world = World(client)
    answer = client.send(api_key, version, **row.request(world, version))
    assert codes(answer) in (row.codes(version), set())
    assert row.holds(answer), answer
    assert client.is_alive()


# ApiVersions ----------------------------------------------------------------------------------------------------


def versions_told(answer: Any) -> dict[int, range]:
    return {api.api_key: range(api.min_version, api.max_version + 1) for api in answer.api_keys}


@pytest.mark.parametrize("version", range(5))
def test_api_versions_tells_what_is_served_and_produce_from_0(client: RawClient, version: int):
    answer = client.send(API_VERSIONS, version, client_software_name="raw", client_software_version="1")
    served = {key: row.versions for key, row in ROWS.items()}
    assert versions_told(answer) == served | {PRODUCE: range(14)}


def test_features_whose_minimum_is_0_are_told_from_version_4_on(client: RawClient):
    told = {
        version: client.send(
            API_VERSIONS, version, client_software_name="raw", client_software_version="1"
        ).supported_features
        for version in (3, 4)
    }
    assert all(feature.min_version > 0 for feature in told[3])
    assert {feature.name for feature in told[4]} == {"group.version", "share.version", "transaction.version"}


def test_the_header_of_an_answer_to_api_versions_is_never_flexible(client: RawClient):
    client.send_bytes(
        request_bytes(API_VERSIONS, 4, 77, client_software_name="raw", client_software_version="1")
    )
    payload = client.read_frame()
    no_error = bytes(2)  # right behind the correlation id: no tagged fields lie between
    assert payload[:6] == (77).to_bytes(4, "big") + no_error


def test_tagged_fields_of_a_later_release_are_ignored(client: RawClient):
    """In the header and in the body, as KIP-482 has it."""
    sound = request_bytes(METADATA, 12, 78, topics=(), include_topic_authorized_operations=False)
    head, body = sound[4:].split(b"raw client\0")
    later = b"\x01" + b"\x63\x03abc"
    client.send_bytes(framed(head + b"raw client" + later + body[:-1] + later))
    correlation_id, answer = response_of(client.read_frame(), METADATA, 12)
    assert (correlation_id, answer.topics) == (78, ())
    assert client.is_alive()


@pytest.mark.parametrize("version", [5, 100, 32767, -1])
def test_a_version_of_api_versions_that_is_not_known_is_answered_with_version_0(
    client: RawClient, version: int
):
    known = request_bytes(API_VERSIONS, 4, 9, client_software_name="raw", client_software_version="1")
    client.send_bytes(known[:6] + version.to_bytes(2, "big", signed=True) + known[8:])
    correlation_id, answer = response_of(client.read_frame(), API_VERSIONS, 0)
    assert (correlation_id, answer.error_code) == (9, ErrorCode.unsupported_version)
    assert versions_told(answer)[API_VERSIONS] == range(5)
    assert client.is_alive()


@pytest.mark.parametrize("version", range(3))
def test_produce_below_3_closes_the_connection(client: RawClient, other: RawClient, version: int):
    header = struct.pack(">hhihh", PRODUCE, version, 1, -1, 1)  # no client id; acks=1
    client.send_bytes(framed(header + struct.pack(">ii", 1000, 0)))
    assert client.is_closed_by_server()
    assert other.is_alive()


def test_bytes_behind_a_request_are_not_looked_at(client: RawClient):
    topic = new_name()
    client.create(topic)
    sound = request_bytes(METADATA, 13, 5, topics=[{"name": topic}])
    longer = (len(sound) - 4 + 3).to_bytes(4, "big") + sound[4:] + b"\x01\x02\x03"
    client.send_bytes(longer)
    correlation_id, answer = response_of(client.read_frame(), METADATA, 13)
    assert (correlation_id, answer.topics[0].name) == (5, topic)
    assert client.is_alive()


# Order ----------------------------------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_requests_behind_a_long_poll(client: RawClient):
    topic = new_name()
    client.create(topic)
    began = time.monotonic()
    client.begin_fetch({topic: 0}, max_wait=400)
    client.begin(API_VERSIONS, 0)
    client.begin(METADATA, 9, topics=None)
    assert records_of(client.receive()) == {topic: b""}
    assert time.monotonic() - began >= 0.39
    assert client.receive().api_keys
    assert client.receive().brokers


def test_answers_come_in_the_order_of_the_requests_behind_a_produce_that_waits_for_the_disk(
    client: RawClient,
):
    topic = new_name()
    client.create(topic)
    for _ in range(5):
        client.begin_produce(topic, batch(b"x"))
        client.begin(API_VERSIONS, 0)
    for number in range(5):
        ((answer,),) = [found.partition_responses for found in client.receive().responses]
        assert (answer.error_code, answer.base_offset) == (OK, number)
        assert client.receive().api_keys


def test_requests_behind_a_long_poll_are_done_meanwhile(client: RawClient):
    """A produce that follows a long poll on the same connection is what ends the poll."""
    topic = new_name()
    client.create(topic)
    began = time.monotonic()
    client.begin_fetch({topic: 0}, max_wait=20_000)
    client.begin_produce(topic, batch(b"news"))
    assert records_of(client.receive())[topic]
    assert client.receive().responses
    assert time.monotonic() - began < PROMPT_S


def test_many_requests_at_once_are_all_answered(client: RawClient):
    for _ in range(1000):
        client.begin(API_VERSIONS, 0)
    assert all(client.receive().api_keys for _ in range(1000))


def test_a_heartbeat_does_not_wait_for_a_long_poll_of_another_connection(client: RawClient, other: RawClient):
    topic = new_name()
    client.create(topic)
    member = World(other).member()
    client.begin_fetch({topic: 0}, max_wait=20_000)
    began = time.monotonic()
    assert other.send(HEARTBEAT, 4, **member).error_code is OK
    assert time.monotonic() - began < PROMPT_S


def test_a_produce_without_acknowledgement_has_no_answer(client: RawClient):
    topic = new_name()
    client.create(topic)
    data = {"name": topic, "partition_data": [{"index": 0, "records": batch(b"unanswered")}]}
    client.send_bytes(request_bytes(PRODUCE, 9, acks=0, timeout=1000, topic_data=[data]))
    answer = client.fetch({topic: 0}, max_wait=20_000)
    assert b"unanswered" in records_of(answer)[topic]


# Topic ids --------------------------------------------------------------------------------------------------------


def by_id(topic_id: uuid.UUID | None, **fields: Any) -> list[dict[str, Any]]:
    return [{"topic_id": topic_id} | fields]


def produce_by_id(client: RawClient, topic_id: uuid.UUID | None) -> Any:
    data = by_id(topic_id, partition_data=[{"index": 0, "records": batch(b"x")}])
    (topic,) = client.send(PRODUCE, 13, acks=-1, timeout=1000, topic_data=data).responses
    return topic


def fetch_by_id(client: RawClient, topic_id: uuid.UUID | None, version: int) -> Any:
    topics = by_id(topic_id, partitions=[fetch_partition(0)])
    (topic,) = client.send(FETCH, version, max_wait=0, topics=topics).responses
    return topic


def test_produce_and_fetch_by_topic_id(client: RawClient):
    topic_id = client.create(new_name())
    produced = produce_by_id(client, topic_id)
    assert (produced.topic_id, codes(produced)) == (topic_id, {OK})
    for version in range(13, 19):
        fetched = fetch_by_id(client, topic_id, version)
        assert (fetched.topic_id, codes(fetched)) == (topic_id, {OK})
        assert fetched.partitions[0].records


@pytest.mark.parametrize("name", [None, ""], ids=["null", "empty"])
def test_metadata_by_topic_id_whatever_the_name_beside_it_is(client: RawClient, name: str | None):
    """Java's client sends an empty one."""
    topic_id = client.create(new_name())
    asked = client.send(METADATA, 12, topics=[{"name": name, "topic_id": topic_id}])
    (topic,) = asked.topics
    assert (topic.topic_id, topic.error_code) == (topic_id, OK)


@pytest.mark.parametrize("topic_id", [uuid.UUID(int=7), None], ids=["unknown", "zero"])
def test_a_topic_id_that_nothing_has_is_unknown(client: RawClient, topic_id: uuid.UUID | None):
    wrong = {ErrorCode.unknown_topic_id}
    assert codes(produce_by_id(client, topic_id)) == wrong
    assert codes(fetch_by_id(client, topic_id, 13)) == wrong
    part = {"partition_index": 0, "committed_offset": 1, "committed_leader_epoch": -1}
    committed = client.send(
        OFFSET_COMMIT,
        10,
        group_id="ids",
        generation_id_or_member_epoch=-1,
        topics=by_id(topic_id, partitions=[part]),
    )
    assert codes(committed) == wrong
    asked = {"group_id": "ids", "member_epoch": -1, "topics": by_id(topic_id, partition_indexes=[0])}
    (group,) = client.send(OFFSET_FETCH, 10, groups=[asked]).groups
    assert codes(group.topics) == wrong
    if topic_id is not None:
        assert codes(client.send(METADATA, 13, topics=by_id(topic_id, name=None)).topics) == wrong


def test_offsets_are_committed_and_fetched_by_topic_id(client: RawClient):
    group_id = new_name("group")
    topic_id = client.create(new_name())
    part = {
        "partition_index": 0,
        "committed_offset": 12,
        "committed_leader_epoch": -1,
        "committed_metadata": "m",
    }
    committed = client.send(
        OFFSET_COMMIT,
        10,
        group_id=group_id,
        generation_id_or_member_epoch=-1,
        topics=by_id(topic_id, partitions=[part]),
    )
    assert codes(committed) == {OK}
    for topics in (by_id(topic_id, partition_indexes=[0]), None):
        asked = {"group_id": group_id, "member_epoch": -1, "topics": topics}
        (group,) = client.send(OFFSET_FETCH, 10, groups=[asked]).groups
        assert [(topic.topic_id, topic.partitions[0].committed_offset) for topic in group.topics] == [
            (topic_id, 12)
        ]
        assert group.topics[0].partitions[0].metadata == "m"


def test_a_topic_deleted_and_made_again_has_another_id(client: RawClient):
    topic = new_name()
    before = client.create(topic)
    assert codes(client.send(20, 5, topic_names=[topic], timeout=1000)) == {OK}
    after = client.create(topic)
    assert before != after
    assert codes(produce_by_id(client, before)) == {ErrorCode.unknown_topic_id}
    assert codes(produce_by_id(client, after)) == {OK}


@pytest.mark.parametrize("version", range(10, 14))
def test_metadata_never_gives_the_zero_id(client: RawClient, version: int):
    made = new_name("made-by-metadata")
    created = client.create(new_name())
    (topic,) = client.send(METADATA, version, topics=[{"name": made}], allow_auto_topic_creation=True).topics
    assert (topic.error_code, topic.name) == (OK, made)
    everything = client.send(METADATA, version, topics=None).topics
    ids = {topic.topic_id for topic in everything}
    assert created in ids
    assert not ids & {None, uuid.UUID(int=0)}


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("name", ["", "..", "a b", "x" * 250])
def test_metadata_says_which_names_no_topic_can_have(client: RawClient, name: str, create: bool):
    """A consumer would wait for a topic that is only unknown."""
    asked = {"topics": [{"name": name}], "allow_auto_topic_creation": create}
    assert codes(client.send(METADATA, 12, **asked)) == {ErrorCode.invalid_topic_exception}


@pytest.mark.parametrize("name", ["__consumer_offsets", "orders-to-come"])
def test_metadata_makes_no_topic_that_it_is_not_told_to_make(client: RawClient, name: str):
    asked = {"topics": [{"name": name}], "allow_auto_topic_creation": False}
    assert codes(client.send(METADATA, 12, **asked)) == {ErrorCode.unknown_topic_or_partition}


def test_metadata_finds_a_topic_by_its_id(client: RawClient):
    topic = new_name()
    topic_id = client.create(topic)
    (found,) = client.send(METADATA, 12, topics=by_id(topic_id, name=None)).topics
    assert (found.name, found.topic_id) == (topic, topic_id)


@pytest.mark.parametrize("version", [10, 11])
def test_metadata_says_that_an_id_is_unknown_where_a_name_cannot_be_null(client: RawClient, version: int):
    answer = client.send(METADATA, version, topics=by_id(uuid.UUID(int=7), name=None))
    assert codes(answer) <= {ErrorCode.unknown_topic_id, ErrorCode.invalid_request}
    assert client.is_alive()


def test_describe_topic_partitions_takes_no_cursor_and_gives_none(client: RawClient):
    topic = new_name()
    topic_id = client.create(topic, 3)
    answer = client.send(DESCRIBE_TOPIC_PARTITIONS, 0, topics=[{"name": topic}], cursor=None)
    assert answer.next_cursor is None
    assert [(found.topic_id, len(found.partitions)) for found in answer.topics] == [(topic_id, 3)]


def test_describe_topic_partitions_goes_on_at_the_cursor(client: RawClient):
    first, second = (f"{new_name('cursor')}-{letter}" for letter in "ab")
    for topic in (first, second):
        client.create(topic, 3)
    names = [{"name": first}, {"name": second}]
    cursor = {"topic_name": second, "partition_index": 1}
    answer = client.send(DESCRIBE_TOPIC_PARTITIONS, 0, topics=names, cursor=cursor)
    assert [(topic.name, [part.partition_index for part in topic.partitions]) for topic in answer.topics] == [
        (second, [1, 2])
    ]


# Groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(10))
def test_a_member_is_given_its_id_before_it_joins_from_version_4_on(client: RawClient, version: int):
    group_id = new_name("group")
    answer = client.send(JOIN_GROUP, version, **joining(group_id))
    assert answer.member_id
    if version < 4:
        assert (answer.error_code, answer.generation_id) == (OK, 1)
        return
    assert answer.error_code is ErrorCode.member_id_required
    again = client.send(JOIN_GROUP, version, **joining(group_id, answer.member_id))
    assert (again.error_code, again.generation_id) == (OK, 1)
    assert again.leader == again.member_id == answer.member_id


@pytest.mark.parametrize("version", range(10))
def test_a_group_that_cannot_be_named_so_is_refused(client: RawClient, version: int):
    answer = client.send(JOIN_GROUP, version, **joining(""))
    assert (answer.error_code, answer.generation_id) == (ErrorCode.invalid_group_id, -1)


@pytest.mark.parametrize("name", ["", "two\nlines"])
@pytest.mark.parametrize("version", range(6))
def test_a_transaction_commits_no_offsets_of_a_group_that_cannot_be_named_so(
    client: RawClient, version: int, name: str
):
    """A client that tells no generation is trusted to be a member, but not with what makes a group."""
    topic, transactional_id = new_name(), new_name("transaction")
    client.create(topic)
    producer_id, producer_epoch = client.new_producer(transactional_id)
    who = {
        "transactional_id": transactional_id,
        "producer_id": producer_id,
        "producer_epoch": producer_epoch,
        "group_id": name,
    }
    part = {"partition_index": 0, "committed_offset": 0, "committed_leader_epoch": -1}
    answer = client.send(28, version, **who, generation_id=-1, topics=[{"name": topic, "partitions": [part]}])
    assert codes(answer) == {ErrorCode.invalid_group_id}


@pytest.mark.parametrize("version", range(10))
def test_who_is_no_consumer_does_not_join_a_group_of_consumers(client: RawClient, version: int):
    group_id = World(client).member_of_consumer_group()
    answer = client.send(JOIN_GROUP, version, **(joining(group_id) | {"protocol_type": "connect"}))
    assert (answer.error_code, answer.generation_id) == (ErrorCode.inconsistent_group_protocol, -1)


@pytest.mark.parametrize("version", range(4, 10))
def test_a_member_that_nobody_knows_cannot_join(client: RawClient, version: int):
    answer = client.send(JOIN_GROUP, version, **joining(new_name("group"), "stranger"))
    assert (answer.error_code, answer.generation_id) == (ErrorCode.unknown_member_id, -1)


def test_a_heartbeat_of_a_stranger_makes_no_consumer_group(client: RawClient):
    group_id = new_name("consumers")
    beat = {"group_id": group_id, "member_id": str(uuid.uuid4()), "member_epoch": 3}
    answer = client.send(68, 1, **beat, rebalance_timeout=-1, subscribed_topic_names=None)
    assert answer.error_code in (ErrorCode.unknown_member_id, ErrorCode.group_id_not_found)
    assert group_id not in {group.group_id for group in client.send(16, 5).groups}


def test_a_join_of_a_stranger_makes_no_classic_group(client: RawClient):
    group_id = new_name("group")
    assert (
        client.send(JOIN_GROUP, 5, **joining(group_id, "stranger")).error_code is ErrorCode.unknown_member_id
    )
    assert group_id not in {group.group_id for group in client.send(16, 5).groups}


@pytest.mark.parametrize("version", range(2, 11))
def test_a_member_that_was_forgotten_is_told_so_when_it_commits(client: RawClient, version: int):
    """As after a restart of the server. It joins again, whereas ILLEGAL_GENERATION is fatal to Java's consumers."""
    member = {"member_id": "before", "generation_id_or_member_epoch": 3}
    answer = client.send(OFFSET_COMMIT, version, **(offset_commit_row(World(client), version) | member))
    assert codes(answer) == {ErrorCode.unknown_member_id}


@pytest.mark.parametrize("version", [9, 10])
def test_a_member_that_was_forgotten_is_told_so_when_it_fetches_offsets(client: RawClient, version: int):
    world = World(client)
    topics = [world.topic_of(version, 10) | {"partition_indexes": [0]}]
    asked = {"group_id": world.group, "member_id": "before", "member_epoch": 3, "topics": topics}
    (group,) = client.send(OFFSET_FETCH, version, groups=[asked]).groups
    assert group.error_code is ErrorCode.unknown_member_id


def offsets_deleted(client: RawClient, group_id: str, topic: str) -> tuple[ErrorCode, list[ErrorCode]]:
    """OffsetDelete of a topic's first partition: the errors of the group and of the partition."""
    topics = [{"name": topic, "partitions": [{"partition_index": 0}]}]
    answer = client.send(OFFSET_DELETE, 0, group_id=group_id, topics=topics)
    return answer.error_code, [part.error_code for topic in answer.topics for part in topic.partitions]


@pytest.mark.parametrize(
    ("protocol_type", "metadata", "answered"),
    [
        ("consumer", SUBSCRIPTION, (OK, [OK])),
        ("consumer", b"?", (OK, [ErrorCode.group_subscribed_to_topic])),
        ("connect", b"?", (ErrorCode.non_empty_group, [])),
    ],
    ids=["it reads nothing", "nobody knows what it reads", "it is no consumer"],
)
def test_offsets_of_a_member_are_deleted_only_when_it_is_known_not_to_read_them(
    client: RawClient, protocol_type: str, metadata: bytes, answered: tuple[ErrorCode, list[ErrorCode]]
):
    world = World(client)
    protocols = [{"name": "range", "metadata": metadata}]
    asked = joining(world.group) | {"protocol_type": protocol_type, "protocols": protocols}
    joined = client.send(JOIN_GROUP, 3, **asked)
    member = {"generation_id": joined.generation_id, "member_id": joined.member_id}
    assert client.send(SYNC_GROUP, 3, group_id=world.group, **member).error_code is OK
    assert offsets_deleted(client, world.group, world.topic) == answered
    is_kept = offset_fetch_holds(client.send(OFFSET_FETCH, 7, **offset_fetch_row(world, 7)))
    assert is_kept == (answered != (OK, [OK]))


@pytest.mark.parametrize("offset", [-1, -2])
def test_a_negative_offset_takes_back_what_was_committed(client: RawClient, offset: int):
    """kafkajs commits one when its own is out of range, and goes on where its user wants it to."""
    world = World(client)
    for _ in range(2):  # the second time there is nothing left
        world.commit(offset)
        answer = client.send(OFFSET_FETCH, 7, **offset_fetch_row(world, 7))
        assert answer.topics[0].partitions[0].committed_offset == -1
    world.commit(2)
    assert offset_fetch_holds(client.send(OFFSET_FETCH, 7, **offset_fetch_row(world, 7)))


def test_offsets_are_not_deleted_of_what_the_librarys_consumers_read(
    shared: ServerProcess, client: RawClient
):
    world = World(client)
    with (
        logbroker.open(shared.data) as broker,
        broker.consumer(f"{world.topic[:-1]}*", group=world.group) as consumer,
    ):
        consumer.poll()
        assert offsets_deleted(client, world.group, world.topic) == (
            OK,
            [ErrorCode.group_subscribed_to_topic],
        )
        assert offsets_deleted(client, world.group, "none") == (OK, [OK])
    assert offsets_deleted(client, world.group, world.topic) == (OK, [OK])


# Configuration ----------------------------------------------------------------------------------------------------


def test_no_configuration_is_set_for_all_brokers_at_once(client: RawClient):
    """Their resource has no name, and has in Kafka what was set for them while they ran."""
    named, unnamed = client.send(
        32, 4, resources=[{"resource_type": BROKER, "resource_name": name} for name in ("0", "")]
    ).results
    assert (unnamed.error_code, unnamed.configs) == (OK, ())
    assert named.configs


# Leader epochs ----------------------------------------------------------------------------------------------------


def test_the_leader_epoch_is_always_0(client: RawClient):
    topic = new_name()
    client.create(topic)
    client.produce(topic, batch(b"x", partition_leader_epoch=5))
    (described,) = client.send(METADATA, 13, topics=[{"name": topic}]).topics
    assert described.partitions[0].leader_epoch == 0
    records = records_of(client.fetch({topic: 0}))[topic]
    assert records[12:16] == bytes(4)
    part = {"partition_index": 0, "timestamp": -1, "current_leader_epoch": 0}
    listed = client.send(LIST_OFFSETS, 9, topics=[{"name": topic, "partitions": [part]}])
    assert listed.topics[0].partitions[0].leader_epoch == 0


def test_a_client_that_knows_a_later_leader_epoch_is_told_that_it_is_unknown(client: RawClient):
    topic = new_name()
    client.create(topic)
    unknown = {ErrorCode.unknown_leader_epoch}
    wanted = fetch_partition(0) | {"current_leader_epoch": 1}
    fetched = client.send(FETCH, 12, topics=[{"topic": topic, "partitions": [wanted]}])
    assert codes(fetched.responses) == unknown
    at = {"partition_index": 0, "timestamp": -1, "current_leader_epoch": 1}
    listed = client.send(LIST_OFFSETS, 7, topics=[{"name": topic, "partitions": [at]}])
    assert codes(listed) == unknown
    epoch = {"partition": 0, "leader_epoch": 0, "current_leader_epoch": 1}
    ended = client.send(OFFSET_FOR_LEADER_EPOCH, 4, topics=[{"topic": topic, "partitions": [epoch]}])
    assert codes(ended) == unknown


def test_offset_for_leader_epoch_gives_the_end_of_epoch_0_and_of_no_other(client: RawClient):
    topic = new_name()
    client.create(topic)
    client.produce(topic, batch(b"a", b"b"))
    parts = [{"partition": 0, "leader_epoch": epoch, "current_leader_epoch": -1} for epoch in (0, 1)]
    answer = client.send(OFFSET_FOR_LEADER_EPOCH, 3, topics=[{"topic": topic, "partitions": parts}])
    assert [
        (part.error_code, part.leader_epoch, part.end_offset) for part in answer.topics[0].partitions
    ] == [(OK, 0, 2), (OK, -1, -1)]


def test_offset_for_leader_epoch_of_a_partition_that_is_not_there(client: RawClient):
    parts = [{"partition": 0, "leader_epoch": 0, "current_leader_epoch": -1}]
    answer = client.send(OFFSET_FOR_LEADER_EPOCH, 3, topics=[{"topic": "absent", "partitions": parts}])
    (part,) = answer.topics[0].partitions
    assert (part.error_code, part.leader_epoch, part.end_offset) == (
        ErrorCode.unknown_topic_or_partition,
        -1,
        -1,
    )


# Idempotent producers -----------------------------------------------------------------------------------------------


@dataclass
class Producer:
    """A producer with an id, and batches of it."""

    client: RawClient
    topic: str
    producer_id: int
    epoch: int = 0

    def send(self, sequence: int, records: int = 1, **changes: Any) -> tuple[ErrorCode, int]:
        fields = {"producer_id": self.producer_id, "producer_epoch": self.epoch, "base_sequence": sequence}
        answer = self.client.produce(self.topic, batch(*[b"x"] * records, **(fields | changes)))
        return answer.error_code, answer.base_offset


@pytest.fixture
def producer(client: RawClient) -> Producer:
    topic = new_name()
    client.create(topic)
    return Producer(client, topic, client.new_producer()[0])


def test_producer_ids_differ(client: RawClient):
    assert len({client.new_producer()[0] for _ in range(20)}) == 20


def test_a_batch_sent_again_is_answered_with_its_first_offset(producer: Producer):
    sent = [producer.send(sequence, 2) for sequence in range(0, 10, 2)]
    assert sent == [(OK, offset) for offset in range(0, 10, 2)]
    assert [producer.send(sequence, 2) for sequence in range(0, 10, 2)] == sent
    assert producer.client.end_offset(producer.topic) == 10


def test_a_batch_sent_again_after_the_server_was_killed_is_answered_with_its_first_offset(
    server: ServerProcess,
):
    with RawClient(server.port) as client:
        client.create("orders")
        producer_id, _ = client.new_producer()
        assert Producer(client, "orders", producer_id).send(0, 3) == (OK, 0)
        assert Producer(client, "orders", producer_id).send(3, 2) == (OK, 3)
    server.kill()
    server.start()
    with RawClient(server.port) as client:
        again = Producer(client, "orders", producer_id)
        assert again.send(3, 2) == (OK, 3)
        assert again.send(0, 3) == (OK, 0)
        assert again.send(5) == (OK, 5)
        assert client.end_offset("orders") == 6


def test_a_gap_in_the_sequences_is_refused(producer: Producer):
    assert producer.send(0) == (OK, 0)
    assert producer.send(2)[0] is ErrorCode.out_of_order_sequence_number
    assert producer.send(1) == (OK, 1)


def test_a_batch_of_an_old_epoch_is_refused(producer: Producer):
    assert producer.send(0, producer_epoch=1) == (OK, 0)
    assert producer.send(1, producer_epoch=0)[0] is ErrorCode.invalid_producer_epoch
    assert producer.client.end_offset(producer.topic) == 1


def test_a_new_epoch_begins_its_sequences_anew(producer: Producer):
    assert producer.send(0, 5) == (OK, 0)
    assert producer.send(0, producer_epoch=1) == (OK, 5)


def test_sequences_go_on_at_0_behind_the_last_one(producer: Producer):
    last = 2**31 - 1
    assert producer.send(last - 1, 3) == (OK, 0)  # last - 1, last, 0
    assert producer.send(1) == (OK, 3)
    assert producer.send(last - 1, 3) == (OK, 0)
    assert producer.send(last)[0] is ErrorCode.out_of_order_sequence_number


def test_sequences_that_end_with_the_last_one_go_on_at_0(producer: Producer):
    last = 2**31 - 1
    assert producer.send(last) == (OK, 0)
    assert producer.send(0) == (OK, 1)


# Fetch sessions -----------------------------------------------------------------------------------------------------


@dataclass
class Session:
    """A fetch session over topics, each with one partition and no record."""

    client: RawClient
    topics: tuple[str, ...]
    session_id: int = 0
    epoch: int = 0

    def begin(self, **options: Any) -> Any:
        answer = self.client.fetch(dict.fromkeys(self.topics, 0), session_id=0, session_epoch=0, **options)
        self.session_id, self.epoch = answer.session_id, 1
        return answer

    def ask(self, wanted: dict[str, int] | None = None, **options: Any) -> Any:
        """The next request of the session."""
        fields = {"session_id": self.session_id, "session_epoch": self.epoch}
        answer = self.client.fetch(wanted or {}, **(fields | options))
        if answer.error_code is OK:
            self.epoch += 1
        return answer


@pytest.fixture
def session(client: RawClient) -> Session:
    topics = new_name(), new_name()
    for topic in topics:
        client.create(topic)
    return Session(client, topics)


def test_a_session_begins_with_all_partitions(session: Session):
    answer = session.begin()
    assert answer.session_id > 0
    assert set(records_of(answer)) == set(session.topics)


def test_a_session_goes_on_with_what_is_new(session: Session):
    session.begin()
    first, second = session.topics
    assert records_of(session.ask()) == {}
    session.client.produce(second, batch(b"x"))
    answer = session.ask()
    assert list(records_of(answer)) == [second]
    assert answer.session_id == session.session_id
    session.client.produce(first, batch(b"x"))
    assert list(records_of(session.ask({second: 1}))) == [first]
    assert records_of(session.ask({first: 1})) == {}


def test_a_session_tells_of_a_partition_whose_start_has_moved(session: Session):
    first, _ = session.topics
    session.client.produce(first, batch(b"a", b"b"))
    session.begin()
    session.ask({first: 2})
    delete_before(session.client, first, 1)
    (told,) = session.ask().responses
    assert (told.topic, told.partitions[0].log_start_offset) == (first, 1)


def test_a_session_forgets_what_it_is_told_to_forget(session: Session):
    session.begin()
    first, second = session.topics
    for topic in session.topics:
        session.client.produce(topic, batch(b"x"))
    forgotten = [{"topic": first, "partitions": [0]}]
    assert list(records_of(session.ask(forgotten_topics_data=forgotten))) == [second]
    assert list(records_of(session.ask())) == [second]
    assert set(records_of(session.ask({first: 0}))) == {first, second}


@pytest.mark.parametrize("epoch", [2, 0x7FFFFFFF])
def test_a_wrong_epoch_is_refused_and_leaves_the_session_as_it_was(session: Session, epoch: int):
    session.begin()
    assert session.ask(session_epoch=epoch).error_code is ErrorCode.invalid_fetch_session_epoch
    assert session.ask().error_code is OK


def test_a_session_that_nobody_has_is_not_found(session: Session):
    session.begin()
    answer = session.ask(session_id=session.session_id ^ 1)
    assert (answer.error_code, answer.session_id) == (ErrorCode.fetch_session_id_not_found, 0)


@pytest.mark.parametrize(("begun", "asked"), [(12, 13), (13, 12)])
def test_a_session_of_topic_names_does_not_go_on_with_ids_nor_the_other_way_round(
    session: Session, begun: int, asked: int
):
    """Java changes over when it comes to know the ids, or a topic is added whose id it does not know."""
    topic = new_name()
    names = {"topic": topic, "topic_id": session.client.create(topic)}
    wanted = [names | {"partitions": [fetch_partition(0)]}]
    session.begin(version=begun, topics=wanted)
    for wish in (wanted, []):
        answer = session.ask(version=asked, topics=wish)
        assert (answer.error_code, answer.session_id) == (ErrorCode.fetch_session_topic_id_error, 0)
    session.client.produce(topic, batch(b"x"))
    assert len(records_of(session.ask(version=begun))) == 1
    assert session.ask(version=asked, topics=wanted, session_epoch=0).error_code is OK


def test_a_session_is_closed_with_epoch_minus_1(session: Session):
    session.begin()
    closing = session.ask(dict.fromkeys(session.topics, 0), session_epoch=-1)
    assert (closing.error_code, closing.session_id) == (OK, 0)
    assert set(records_of(closing)) == set(session.topics)
    assert session.ask().error_code is ErrorCode.fetch_session_id_not_found


def test_epoch_0_of_a_session_begins_another(session: Session):
    session.begin()
    answer = session.ask(dict.fromkeys(session.topics, 0), session_epoch=0)
    assert answer.session_id not in (0, session.session_id)
    session.epoch = 1
    assert session.ask().error_code is ErrorCode.fetch_session_id_not_found


def test_a_fetch_outside_of_sessions_begins_none(session: Session):
    answer = session.client.fetch(dict.fromkeys(session.topics, 0))
    assert answer.session_id == 0
    assert set(records_of(answer)) == set(session.topics)


def test_the_oldest_session_makes_place_for_a_new_one(session: Session):
    session.begin()
    used = Session(session.client, session.topics)
    used.begin()
    client = session.client
    for made in range(MAX_SESSIONS - 1):
        client.begin_fetch({session.topics[0]: 0}, session_id=0, session_epoch=0)
        if made % 50 == 49:
            for _ in range(50):
                client.receive()
            assert used.ask().error_code is OK
    while client.unanswered:
        client.receive()
    assert session.ask().error_code is ErrorCode.fetch_session_id_not_found
    assert used.ask().error_code is OK


# Long polls and limits ------------------------------------------------------------------------------------------------


def test_a_fetch_waits_for_min_bytes_no_longer_than_max_wait(client: RawClient):
    topic = new_name()
    client.create(topic)
    client.produce(topic, batch(b"small"))
    began = time.monotonic()
    answer = client.fetch({topic: 0}, min_bytes=100_000, max_wait=300)  # else it is not answered in time
    assert time.monotonic() - began >= 0.29
    assert records_of(answer)[topic], "what there is comes when the time is over"


def test_a_fetch_is_answered_as_soon_as_min_bytes_are_there(client: RawClient, other: RawClient):
    topic = new_name()
    client.create(topic)
    client.begin_fetch({topic: 0}, min_bytes=2000, max_wait=20_000)
    began = time.monotonic()
    other.produce(topic, batch(bytes(500)))
    other.produce(topic, batch(bytes(2000)))
    records = records_of(client.receive())[topic]
    assert time.monotonic() - began < PROMPT_S
    assert len(records) > 2500, "the first batch alone did not end the wait"


def test_a_fetch_is_woken_by_a_record_of_another_process(shared: ServerProcess, client: RawClient):
    topic = new_name()
    client.create(topic)
    client.begin_fetch({topic: 0}, max_wait=20_000)
    began = time.monotonic()
    with logbroker.open(shared.data) as broker, broker.producer() as producer:
        producer.send(topic, b"embedded").result()
    assert b"embedded" in records_of(client.receive())[topic]
    assert time.monotonic() - began < PROMPT_S


def test_a_fetch_with_an_error_in_it_does_not_wait(client: RawClient):
    topic = new_name()
    client.create(topic)
    began = time.monotonic()
    answer = client.fetch({topic: 0, "absent": 0}, max_wait=20_000)
    assert codes(answer.responses) == {OK, ErrorCode.unknown_topic_or_partition}
    assert time.monotonic() - began < PROMPT_S


@pytest.mark.parametrize("offset", [-1, 4, 2**62])
def test_an_offset_outside_of_the_log_is_refused(client: RawClient, offset: int):
    topic = new_name()
    client.create(topic)
    client.produce(topic, batch(b"a", b"b", b"c"))
    ((part,),) = [found.partitions for found in client.fetch({topic: offset}).responses]
    assert part.error_code is ErrorCode.offset_out_of_range


@pytest.fixture
def batches(client: RawClient) -> tuple[str, list[bytes]]:
    """A topic with five batches of 10 kB, and their bytes."""
    topic = new_name()
    client.create(topic)
    for _ in range(5):
        client.produce(topic, batch(bytes(10_000)))
    rest = records_of(client.fetch({topic: 0}))[topic]
    size = len(rest) // 5
    return topic, [rest[start : start + size] for start in range(0, len(rest), size)]


@pytest.mark.parametrize(
    ("limit_in_batches", "expected"), [(0.0001, 1), (0.5, 1), (1, 1), (1.5, 1), (2, 2), (2.5, 2), (10, 5)]
)
def test_partition_max_bytes_takes_whole_batches_and_the_first_in_any_case(
    client: RawClient, batches: tuple[str, list[bytes]], limit_in_batches: float, expected: int
):
    topic, stored = batches
    limit = int(limit_in_batches * len(stored[0]))
    for options in ({"partition_max_bytes": limit}, {"max_bytes": limit}):
        answer = client.fetch({topic: 0}, **options)
        assert records_of(answer)[topic] == b"".join(stored[:expected])


def test_a_limit_of_0_gives_the_first_batch_too(client: RawClient, batches: tuple[str, list[bytes]]):
    topic, stored = batches
    assert records_of(client.fetch({topic: 0}, partition_max_bytes=0))[topic] == stored[0]
    assert records_of(client.fetch({topic: 0}, max_bytes=0))[topic] == stored[0]


def test_min_bytes_above_max_bytes_are_not_waited_for(client: RawClient, batches: tuple[str, list[bytes]]):
    """As in Kafka, which takes the smaller of both: more than max_bytes will never be there."""
    topic, stored = batches
    began = time.monotonic()
    answer = client.fetch({topic: 0}, min_bytes=30_000, max_bytes=len(stored[0]), max_wait=20_000)
    assert records_of(answer)[topic] == stored[0]
    assert time.monotonic() - began < PROMPT_S


def test_max_bytes_is_for_all_partitions_together(client: RawClient):
    topics = [new_name() for _ in range(4)]
    for topic in topics:
        client.create(topic)
        client.produce(topic, batch(bytes(10_000)))
    wanted = dict.fromkeys(topics, 0)
    records = records_of(client.fetch(wanted, max_bytes=25_000))
    assert [bool(records[topic]) for topic in topics] == [True, True, False, False]
    records = records_of(client.fetch(wanted, max_bytes=1))
    assert [bool(records[topic]) for topic in topics] == [True, False, False, False]


def test_a_session_serves_those_first_that_were_not_served(client: RawClient):
    topics = tuple(new_name() for _ in range(3))
    for topic in topics:
        client.create(topic)
        client.produce(topic, batch(bytes(10_000)))
    session = Session(client, topics)
    session.begin()
    served = [
        next(topic for topic, records in records_of(session.ask(max_bytes=1)).items() if records)
        for _ in topics
    ]
    assert set(served) == set(topics)


def test_a_fetch_from_inside_a_batch_gives_the_batch_whole(client: RawClient):
    topic = new_name()
    client.create(topic)
    client.produce(topic, batch(b"a", b"b", b"c"))
    whole = records_of(client.fetch({topic: 0}))[topic]
    assert records_of(client.fetch({topic: 2}))[topic] == whole


def test_what_is_fetched_is_what_lies_in_the_segment(shared: ServerProcess, client: RawClient):
    topic = new_name()
    client.create(topic)
    for number in range(20):
        client.produce(topic, batch(*[b"%d" % number] * (number + 1)))
    records = records_of(client.fetch({topic: 0}))[topic]
    stored = segment_bytes(shared.data, topic)
    assert stored[: len(records)] == records
    assert not any(stored[len(records) :]), "all of it was fetched"


def test_large_ranges_are_what_lies_in_the_segment(shared: ServerProcess, client: RawClient):
    """Large answers go another way to the socket; their neighbours on the connection keep their places."""
    topic = new_name()
    client.create(topic)
    for number in range(6):
        client.produce(topic, batch(bytes([number]) * 400_000))
    stored = segment_bytes(shared.data, topic)
    size = 12 + int.from_bytes(stored[8:12], "big")
    ranges = [(0, 6), (3, 6), (5, 6), (0, 2), (6, 6)]
    for first, end in ranges:
        client.begin(API_VERSIONS, 0)
        client.begin_fetch({topic: first}, max_bytes=max(1, (end - first) * size))
    for first, end in ranges:
        assert client.receive().api_keys
        assert records_of(client.receive())[topic] == stored[first * size : end * size]


# Transactions -----------------------------------------------------------------------------------------------------


@dataclass
class Writer:
    """A transactional producer on one topic."""

    client: RawClient
    topic: str
    transactional_id: str
    producer: tuple[int, int] = (-1, -1)
    sequence: int = 0

    def begin(self) -> Writer:
        self.producer = self.client.new_producer(self.transactional_id)
        return self

    def write(self, *values: bytes) -> int:
        producer_id, producer_epoch = self.producer
        fields = {"producer_id": producer_id, "producer_epoch": producer_epoch}
        records = batch(*values, base_sequence=self.sequence, transactional=True, **fields)
        answer = self.client.produce(self.topic, records, transactional_id=self.transactional_id)
        assert answer.error_code is OK, answer
        self.sequence += len(values)
        return int(answer.base_offset)

    def end(self, *, commit: bool) -> None:
        self.client.end_transaction(self.transactional_id, self.producer, commit=commit)


def committed_part(client: RawClient, topic: str, offset: int = 0, **options: Any) -> Any:
    answer = client.fetch({topic: offset}, isolation_level=READ_COMMITTED, **options)
    ((part,),) = [found.partitions for found in answer.responses]
    return part


@pytest.fixture
def writer(client: RawClient) -> Writer:
    topic = new_name()
    client.create(topic)
    return Writer(client, topic, new_name("transaction")).begin()


def test_read_committed_ends_at_the_first_open_transaction(client: RawClient, writer: Writer):
    client.produce(writer.topic, batch(b"before"))
    assert writer.write(b"open") == 1
    client.produce(writer.topic, batch(b"behind"))
    part = committed_part(client, writer.topic)
    assert (part.last_stable_offset, part.high_watermark) == (1, 3)
    assert b"before" in part.records
    assert b"open" not in part.records
    assert b"behind" not in part.records
    everything = records_of(client.fetch({writer.topic: 0}))[writer.topic]
    assert b"open" in everything
    assert b"behind" in everything
    assert committed_part(client, writer.topic, 1).records == b""


def test_read_committed_names_the_aborted_transactions_among_the_batches(client: RawClient, writer: Writer):
    producer_id, _ = writer.producer
    writer.write(b"a", b"b")
    writer.end(commit=True)
    first_offset = writer.write(b"never")
    writer.end(commit=False)
    client.produce(writer.topic, batch(b"last"))
    part = committed_part(client, writer.topic)
    assert (part.last_stable_offset, part.high_watermark) == (6, 6)
    assert [(found.producer_id, found.first_offset) for found in part.aborted_transactions] == [
        (producer_id, first_offset)
    ]
    assert committed_part(client, writer.topic, 5).aborted_transactions in ((), None)
    answer = client.fetch({writer.topic: 0})
    assert answer.responses[0].partitions[0].aborted_transactions is None


def test_the_end_of_a_transaction_ends_a_long_poll_for_what_is_committed(client: RawClient, other: RawClient):
    topic = new_name()
    client.create(topic)
    writer = Writer(other, topic, new_name("transaction")).begin()
    writer.write(b"x")
    client.begin_fetch({topic: 0}, isolation_level=READ_COMMITTED, max_wait=20_000)
    began = time.monotonic()
    writer.end(commit=True)
    assert b"x" in records_of(client.receive())[topic]
    assert time.monotonic() - began < PROMPT_S


# ListOffsets --------------------------------------------------------------------------------------------------------


LATEST, EARLIEST, MAX_TIMESTAMP, EARLIEST_LOCAL, LATEST_TIERED, EARLIEST_PENDING_UPLOAD = range(-1, -7, -1)


def listed(client: RawClient, topic: str, timestamp: int, **options: Any) -> tuple[int, int]:
    """The offset and the timestamp that are found."""
    part = {"partition_index": 0, "timestamp": timestamp, "current_leader_epoch": -1}
    fields = {"topics": [{"name": topic, "partitions": [part]}], "replica_id": -1}
    ((answer,),) = [found.partitions for found in client.send(LIST_OFFSETS, 11, **fields, **options).topics]
    assert answer.error_code is OK
    return answer.offset, answer.timestamp


@pytest.fixture
def timed(client: RawClient) -> tuple[str, int]:
    """A topic with four records, 0, 100, 300 and 200 ms behind a time; and that time."""
    topic = new_name()
    now_ms = int(time.time() * 1000)
    client.create(topic)
    for delta_ms in (0, 100, 300, 200):
        client.produce(topic, batch(b"x", timestamp_ms=now_ms + delta_ms))
    return topic, now_ms


def delete_before(client: RawClient, topic: str, offset: int) -> None:
    part = {"partition_index": 0, "offset": offset}
    answer = client.send(DELETE_RECORDS, 2, topics=[{"name": topic, "partitions": [part]}], timeout=1000)
    assert codes(answer) == {OK}


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        pytest.param(LATEST, (4, -1), id="latest"),
        pytest.param(EARLIEST, (1, -1), id="earliest"),
        pytest.param(EARLIEST_LOCAL, (1, -1), id="earliest-local"),
        pytest.param(LATEST_TIERED, (-1, -1), id="latest-tiered"),
        pytest.param(EARLIEST_PENDING_UPLOAD, (-1, -1), id="earliest-pending-upload"),
    ],
)
def test_the_special_times_of_list_offsets(
    client: RawClient, timed: tuple[str, int], timestamp: int, expected: tuple[int, int]
):
    delete_before(client, timed[0], 1)
    assert listed(client, timed[0], timestamp) == expected


def test_list_offsets_finds_the_first_record_that_is_not_older(client: RawClient, timed: tuple[str, int]):
    topic, now_ms = timed
    assert listed(client, topic, now_ms - 1) == (0, now_ms)
    assert listed(client, topic, now_ms) == (0, now_ms)
    assert listed(client, topic, now_ms + 101) == (2, now_ms + 300)
    assert listed(client, topic, now_ms + 301) == (-1, -1)


def test_list_offsets_finds_the_newest_record(client: RawClient, timed: tuple[str, int]):
    topic, now_ms = timed
    assert listed(client, topic, MAX_TIMESTAMP) == (2, now_ms + 300)


@pytest.mark.parametrize("error_ms", [1, -1])
def test_a_batch_whose_header_errs_about_its_newest_record_is_put_right(client: RawClient, error_ms: int):
    """As Kafka does; rskafka errs by a millisecond now and then."""
    topic = new_name()
    client.create(topic)
    now_ms = int(time.time() * 1000)
    records = batch(b"x", timestamp_ms=now_ms)
    assert client.produce(topic, changed(records, max_timestamp_ms=now_ms + error_ms)).error_code is OK
    assert records_of(client.fetch({topic: 0})) == {topic: records}
    assert listed(client, topic, MAX_TIMESTAMP) == (0, now_ms)


def test_list_offsets_finds_no_deleted_record(client: RawClient, timed: tuple[str, int]):
    topic, now_ms = timed
    delete_before(client, topic, 1)
    assert listed(client, topic, now_ms) == (1, now_ms + 100)
    delete_before(client, topic, 3)
    assert listed(client, topic, now_ms + 250) == (-1, -1)
    assert listed(client, topic, MAX_TIMESTAMP) == (3, now_ms + 200)


@pytest.mark.parametrize("timestamp", [MAX_TIMESTAMP, 0])
def test_list_offsets_finds_no_record_in_an_empty_log(client: RawClient, timestamp: int):
    topic = new_name()
    client.create(topic)
    assert listed(client, topic, timestamp) == (-1, -1)


def test_the_latest_offset_of_what_is_committed_is_before_an_open_transaction(
    client: RawClient, writer: Writer
):
    client.produce(writer.topic, batch(b"before"))
    writer.write(b"open")
    assert listed(client, writer.topic, LATEST) == (2, -1)
    assert listed(client, writer.topic, LATEST, isolation_level=READ_COMMITTED) == (1, -1)
    writer.end(commit=True)
    assert listed(client, writer.topic, LATEST, isolation_level=READ_COMMITTED) == (3, -1)


def test_list_offsets_of_a_partition_that_is_not_there(client: RawClient):
    part = {"partition_index": 7, "timestamp": LATEST, "current_leader_epoch": -1}
    topic = new_name()
    client.create(topic)
    answer = client.send(LIST_OFFSETS, 7, topics=[{"name": topic, "partitions": [part]}])
    assert codes(answer) == {ErrorCode.unknown_topic_or_partition}


# The log ------------------------------------------------------------------------------------------------------------


def test_nothing_of_all_this_was_an_error_that_the_server_did_not_foresee(shared: ServerProcess):
    assert not re.search(r"ERROR|Traceback", shared.log())


@pytest.mark.parametrize(
    ("api_key", "version", "asked", "answers"),
    [
        (19, 5, {"topics": [{"name": "twin", "num_partitions": 1, "replication_factor": 1}] * 2}, "topics"),
        (20, 5, {"topic_names": ["twin", "twin"]}, "responses"),
        (37, 2, {"topics": [{"name": "twin", "count": 3, "assignments": None}] * 2}, "results"),
    ],
    ids=["CreateTopics", "DeleteTopics", "CreatePartitions"],
)
def test_a_topic_that_is_named_twice_is_refused_in_one_answer(client, api_key, version, asked, answers):
    response = client.send(api_key, version, **asked)
    assert [(str(one.name), one.error_code) for one in getattr(response, answers)] == [
        ("twin", ErrorCode.invalid_request)
    ]


def test_a_topic_that_is_named_beside_an_id_is_not_deleted(client: RawClient):
    """It may have been made anew since the client learned its id."""
    topic = new_name()
    before = client.create(topic)
    asked = [{"name": topic, "topic_id": uuid.UUID(int=7)}, {"name": topic, "topic_id": before}]
    assert codes(client.send(20, 6, topics=asked, timeout=1000)) == {ErrorCode.invalid_request}
    assert client.end_offset(topic) == 0


@pytest.mark.parametrize("validate_only", [True, False])
def test_a_topic_cannot_have_more_partitions_than_one_that_is_made(client: RawClient, validate_only: bool):
    topic = new_name()
    client.create(topic)
    asked = {"topics": [{"name": topic, "count": 1_000_000, "assignments": None}]}
    answer = client.send(37, 3, **asked, timeout=1000, validate_only=validate_only)
    assert codes(answer) == {ErrorCode.invalid_partitions}


@pytest.mark.parametrize("numbers", [[0, 0], [0, 2], [1, 2], [-1, 0]], ids=str)
def test_assigned_partitions_are_numbered_without_gaps(client: RawClient, numbers: list[int]):
    assignments = [{"partition_index": number, "broker_ids": [0]} for number in numbers]
    wanted = {"name": new_name(), "num_partitions": -1, "replication_factor": -1, "assignments": assignments}
    assert codes(client.send(CREATE_TOPICS, 5, topics=[wanted])) == {ErrorCode.invalid_replica_assignment}
