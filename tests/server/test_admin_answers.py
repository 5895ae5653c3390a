"""What Kafka's tools ask of a cluster, and one broker without an authorizer, quotas or replicas answers in a word."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

import logbroker
from logbroker.server.handlers.operations import NOT_ASKED_FOR
from logbroker_storage.partition_log import PartitionLog

from .raw_client import ADD_PARTITIONS, METADATA, RawClient, batch, codes, new_name
from .server_process import ServerProcess

OK, FENCED = ErrorCode.none, ErrorCode.transaction_coordinator_fenced
UNKNOWN = ErrorCode.unknown_topic_or_partition
DESCRIBE_GROUPS, LIST_GROUPS, WRITE_TXN_MARKERS, DESCRIBE_CONFIGS = 15, 16, 27, 32
ELECT_LEADERS, INCREMENTAL_ALTER_CONFIGS, ALTER_REASSIGNMENTS = 43, 44, 45
DESCRIBE_QUOTAS, DESCRIBE_SCRAM, DESCRIBE_CLUSTER, LIST_CONFIG_RESOURCES = 48, 50, 60, 74
CONSUMER_GROUP_DESCRIBE, DESCRIBE_TOPIC_PARTITIONS, SHARE_GROUP_DESCRIBE = 69, 75, 77
TOPIC, BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP = 2, 4, 8, 16, 32
SET, DELETE = 0, 1
HUGE = 2**31 - 1

# Bits are Kafka's AclOperation: 3 READ to 12 IDEMPOTENT_WRITE.
OF_TOPIC = 0b1101_1111_1000
OF_GROUP = 0b1101_0100_1000
OF_CLUSTER = 0b1_1111_1010_0000


def new_topic(client: RawClient, partitions: int = 1) -> str:
    topic = new_name()
    client.create(topic, partitions)
    return topic


# Leaders and replicas -------------------------------------------------------------------------------------------


def elect(client: RawClient, topic: str | None, *partitions: int, election_type: int = 0) -> Any:
    asked = None if topic is None else [{"topic": topic, "partitions": partitions}]
    return client.send(ELECT_LEADERS, 2, election_type=election_type, topic_partitions=asked)


@pytest.mark.parametrize("election_type", [0, 1], ids=["preferred", "unclean"])
def test_a_partition_that_there_is_needs_no_election(client: RawClient, election_type: int):
    topic = new_topic(client, 2)
    answer = elect(client, topic, 0, 1, 2, -1, HUGE, election_type=election_type)
    (result,) = answer.replica_election_results
    found = [(part.partition_id, part.error_code) for part in result.partition_result]
    not_needed = ErrorCode.election_not_needed
    assert found == [(0, not_needed), (1, not_needed), (2, UNKNOWN), (-1, UNKNOWN), (HUGE, UNKNOWN)]
    assert answer.error_code is OK


def test_the_leader_of_no_topic_is_not_elected(client: RawClient):
    assert codes(elect(client, "nowhere", 0).replica_election_results) == {UNKNOWN}


def test_an_election_in_all_partitions_tells_of_none(client: RawClient):
    """Kafka leaves out those that have the wanted leader already."""
    topic = new_topic(client)
    answer = elect(client, None)
    assert answer.error_code is OK
    assert {result.topic: result.partition_result for result in answer.replica_election_results}[topic] == ()


def test_an_unknown_kind_of_election_is_refused(client: RawClient):
    answer = elect(client, new_topic(client), 0, election_type=7)
    assert (answer.error_code, answer.replica_election_results) == (ErrorCode.invalid_request, ())


@pytest.mark.parametrize(
    ("partition", "replicas", "code"),
    [
        (0, [0], OK),
        (0, None, ErrorCode.no_reassignment_in_progress),
        (0, [], ErrorCode.invalid_replica_assignment),
        (0, [1], ErrorCode.invalid_replica_assignment),
        (0, [0, 1], ErrorCode.invalid_replica_assignment),
        (0, [0, 0], ErrorCode.invalid_replica_assignment),
        (1, [0], UNKNOWN),
        (HUGE, None, UNKNOWN),
    ],
)
def test_a_partition_can_be_reassigned_to_where_it_is(
    client: RawClient, partition: int, replicas: list[int] | None, code: ErrorCode
):
    part = {"partition_index": partition, "replicas": replicas}
    topics = [{"name": new_topic(client), "partitions": [part]}]
    answer = client.send(ALTER_REASSIGNMENTS, 1, topics=topics, allow_replication_factor_change=True)
    assert answer.error_code is OK
    assert codes(answer.responses) == {code}


# Configuration --------------------------------------------------------------------------------------------------


def resources(client: RawClient, *types: int) -> set[tuple[int, str]]:
    answer = client.send(LIST_CONFIG_RESOURCES, 1, resource_types=types)
    assert answer.error_code is OK
    return {(resource.resource_type, resource.resource_name) for resource in answer.config_resources}


def change(client: RawClient, kind: int, name: str, operation: int, **config: str | None) -> ErrorCode:
    """Configuration keys have ``_`` for ``.``."""
    configs = [
        {"name": key.replace("_", "."), "value": value, "config_operation": operation}
        for key, value in config.items()
    ]
    changed = [{"resource_type": kind, "resource_name": name, "configs": configs}]
    (response,) = client.send(INCREMENTAL_ALTER_CONFIGS, 1, resources=changed).responses
    code: ErrorCode = response.error_code
    return code


def test_topics_the_broker_and_configured_groups_are_the_resources(client: RawClient):
    topic, configured, plain, reset = (
        new_topic(client),
        new_name("group"),
        new_name("group"),
        new_name("group"),
    )
    client.commit(plain, topic, 0)
    assert change(client, GROUP, configured, SET, share_auto_offset_reset="earliest") is OK
    assert change(client, GROUP, reset, SET, share_auto_offset_reset="earliest") is OK
    assert change(client, GROUP, reset, DELETE, share_auto_offset_reset=None) is OK
    everything = resources(client)
    assert {(TOPIC, topic), (BROKER, "0"), (BROKER_LOGGER, "0"), (GROUP, configured)} <= everything
    assert not everything & {(GROUP, plain), (GROUP, reset)}
    assert {kind for kind, _ in everything} == {TOPIC, BROKER, BROKER_LOGGER, GROUP}
    assert resources(client, GROUP) == {found for found in everything if found[0] == GROUP}
    assert resources(client, BROKER, CLIENT_METRICS) == {(BROKER, "0")}


def test_a_type_of_resource_that_is_not_known_is_refused(client: RawClient):
    answer = client.send(LIST_CONFIG_RESOURCES, 1, resource_types=[TOPIC, 3])
    assert (answer.error_code, answer.config_resources) == (ErrorCode.unsupported_version, ())


@pytest.mark.parametrize(("kind", "name"), [(CLIENT_METRICS, "any"), (BROKER_LOGGER, "0")])
def test_loggers_and_client_metrics_have_no_configuration(client: RawClient, kind: int, name: str):
    assert client.send(LIST_CONFIG_RESOURCES, 0).config_resources == ()
    asked = [{"resource_type": kind, "resource_name": name}]
    (described,) = client.send(DESCRIBE_CONFIGS, 4, resources=asked).results
    assert (described.error_code, described.configs) == (OK, ())


def test_what_was_never_set_can_be_taken_back(client: RawClient):
    """kafka-reassign-partitions takes back throttles when it verifies, whether or not it has set any."""
    throttles: dict[str, str | None] = {"leader_replication_throttled_rate": None}
    for kind, name in ((BROKER, "0"), (BROKER, ""), (TOPIC, new_topic(client))):
        assert change(client, kind, name, DELETE, **throttles) is OK
        assert change(client, kind, name, SET, leader_replication_throttled_rate="1") is not OK
    assert change(client, BROKER, "1", DELETE, **throttles) is ErrorCode.invalid_request


# Access ---------------------------------------------------------------------------------------------------------


def test_each_acl_is_refused_for_itself(client: RawClient):
    resource = {"resource_type": 2, "resource_name": "orders", "principal": "User:x", "host": "*"}
    created = client.send(30, 3, creations=[resource] * 3).results
    assert [result.error_code for result in created] == [ErrorCode.security_disabled] * 3
    deleted = client.send(31, 3, filters=[{"resource_name_filter": "orders"}] * 2).filter_results
    assert [result.error_code for result in deleted] == [ErrorCode.security_disabled] * 2
    assert all(result.error_message for result in (*created, *deleted))


def test_no_user_has_credentials(client: RawClient):
    answer = client.send(DESCRIBE_SCRAM, 0, users=[{"name": name} for name in ("ann", "bob", "bob")])
    assert answer.error_code is OK
    assert {result.user: result.error_code for result in answer.results} == {
        "ann": ErrorCode.resource_not_found,
        "bob": ErrorCode.duplicate_resource,
    }
    assert client.send(DESCRIBE_SCRAM, 0, users=[]).results == ()


EXACT, DEFAULT, ANY = range(3)


@pytest.mark.parametrize(
    ("components", "code"),
    [
        ([("user", ANY, None), ("client-id", EXACT, "c")], OK),
        ([("ip", DEFAULT, None)], OK),
        ([("user", EXACT, None)], ErrorCode.invalid_request),
        ([("user", DEFAULT, "u")], ErrorCode.invalid_request),
        ([("user", 3, None)], ErrorCode.invalid_request),
        ([("user", ANY, None), ("user", ANY, None)], ErrorCode.invalid_request),
        ([("user", ANY, None), ("ip", ANY, None)], ErrorCode.invalid_request),
        ([("", ANY, None)], ErrorCode.invalid_request),
        ([("planet", ANY, None)], ErrorCode.unsupported_version),
    ],
)
def test_nobody_has_a_quota(
    client: RawClient, components: list[tuple[str, int, str | None]], code: ErrorCode
):
    asked = [{"entity_type": kind, "match_type": match, "match": name} for kind, match, name in components]
    answer = client.send(DESCRIBE_QUOTAS, 1, components=asked, strict=False)
    assert (answer.error_code, answer.entries) == (code, () if code is OK else None)


# Authorized operations ------------------------------------------------------------------------------------------


def test_everything_may_be_done_with_topics_and_the_cluster(client: RawClient):
    topic = new_topic(client)
    for is_asked in (True, False, True):  # answers are kept by what was asked
        answer = client.send(
            METADATA,
            10,
            topics=[{"name": topic}],
            include_topic_authorized_operations=is_asked,
            include_cluster_authorized_operations=is_asked,
        )
        found = (answer.topics[0].topic_authorized_operations, answer.cluster_authorized_operations)
        assert found == ((OF_TOPIC, OF_CLUSTER) if is_asked else (NOT_ASKED_FOR, NOT_ASKED_FOR))
        cluster = client.send(
            DESCRIBE_CLUSTER, 1, endpoint_type=1, include_cluster_authorized_operations=is_asked
        )
        assert cluster.cluster_authorized_operations == (OF_CLUSTER if is_asked else NOT_ASKED_FOR)
    (described,) = client.send(DESCRIBE_TOPIC_PARTITIONS, 0, topics=[{"name": topic}], cursor=None).topics
    assert described.topic_authorized_operations == OF_TOPIC


def classic_group(client: RawClient) -> str:
    group = new_name("group")
    client.commit(group, new_topic(client), 0)
    return group


def consumer_group(client: RawClient) -> str:
    group = new_name("group")
    fields = {"rebalance_timeout": 10_000, "subscribed_topic_names": ["t"], "topic_partitions": []}
    assert client.send(68, 1, group_id=group, member_id=str(uuid.uuid4()), **fields).error_code is OK
    return group


def share_group(client: RawClient) -> str:
    group = new_name("group")
    joined = client.send(
        76, 1, group_id=group, member_id=str(uuid.uuid4()), subscribed_topic_names=[new_topic(client)]
    )
    assert joined.error_code is OK
    return group


@pytest.mark.parametrize(
    ("api_key", "version", "field", "make"),
    [
        pytest.param(DESCRIBE_GROUPS, 6, "groups", classic_group, id="classic"),
        pytest.param(CONSUMER_GROUP_DESCRIBE, 1, "group_ids", consumer_group, id="consumer"),
        pytest.param(SHARE_GROUP_DESCRIBE, 1, "group_ids", share_group, id="share"),
    ],
)
def test_everything_may_be_done_with_a_group_that_there_is(
    client: RawClient, api_key: int, version: int, field: str, make: Callable[[RawClient], str]
):
    asked = {field: [make(client), "nobody"]}
    for is_asked in (True, False):
        answer = client.send(api_key, version, include_authorized_operations=is_asked, **asked)
        there, missing = [group.authorized_operations for group in answer.groups]
        assert (there, missing) == (OF_GROUP if is_asked else NOT_ASKED_FOR, NOT_ASKED_FOR)


# Groups that only commit ----------------------------------------------------------------------------------------


def protocol_types(client: RawClient, group: str) -> tuple[str, str]:
    """As the group is listed, and as it is described."""
    listed = {found.group_id: found.protocol_type for found in client.send(LIST_GROUPS, 5).groups}
    (described,) = client.send(DESCRIBE_GROUPS, 6, groups=[group]).groups
    assert described.group_state == "Empty"
    return listed[group], described.protocol_type


def test_a_group_that_only_committed_has_no_protocol(client: RawClient):
    """To Kafka's clients it is a simple consumer group."""
    assert protocol_types(client, classic_group(client)) == ("", "")


def test_a_group_that_had_members_keeps_its_protocol(shared: ServerProcess, client: RawClient):
    topic, group = new_topic(client), new_name("group")
    client.produce(topic, batch(b"a"))
    with logbroker.open(shared.data) as broker, broker.consumer(topic, group=group) as consumer:
        consumer.poll(1, 5)
    assert protocol_types(client, group) == ("consumer", "consumer")


# Transactions that hang -----------------------------------------------------------------------------------------


def marker(
    topic: str,
    producer: tuple[int, int],
    *,
    partition: int = 0,
    commit: bool = False,
    coordinator_epoch: int = 0,
) -> dict[str, Any]:
    producer_id, producer_epoch = producer
    return {
        "producer_id": producer_id,
        "producer_epoch": producer_epoch,
        "transaction_result": commit,
        "topics": [{"name": topic, "partition_indexes": [partition]}],
        "coordinator_epoch": coordinator_epoch,
    }


def write(client: RawClient, *markers: dict[str, Any]) -> list[ErrorCode]:
    answer = client.send(WRITE_TXN_MARKERS, 2, markers=markers)
    return [
        part.error_code for found in answer.markers for topic in found.topics for part in topic.partitions
    ]


def begin(client: RawClient, topic: str) -> tuple[str, tuple[int, int]]:
    """A transaction with one record in *topic*."""
    transactional_id = new_name("transaction")
    producer = client.new_producer(transactional_id)
    places = [{"name": topic, "partitions": [0]}]
    added = client.send(
        ADD_PARTITIONS,
        3,
        v3_and_below_transactional_id=transactional_id,
        v3_and_below_producer_id=producer[0],
        v3_and_below_producer_epoch=producer[1],
        v3_and_below_topics=places,
    )
    assert codes(added) == {OK}
    records = transactional(producer)
    assert client.produce(topic, records, transactional_id=transactional_id).error_code is OK
    return transactional_id, producer


def transactional(producer: tuple[int, int]) -> bytes:
    producer_id, producer_epoch = producer
    return batch(
        b"v", producer_id=producer_id, producer_epoch=producer_epoch, base_sequence=0, transactional=True
    )


def is_open(log: PartitionLog) -> bool:
    offsets = log.offsets()
    return offsets.last_stable_offset < offsets.log_end_offset


def test_a_transaction_whose_holder_is_at_work_is_not_ended_for_it(client: RawClient):
    """A commit that follows would have lost what the marker took out of it."""
    topic = new_topic(client)
    transactional_id, producer = begin(client, topic)
    assert write(client, marker(topic, producer)) == [FENCED]
    assert write(client, marker(topic, producer, commit=True)) == [FENCED]
    client.end_transaction(transactional_id, producer, commit=True)
    assert client.end_offset(topic) == 2
    fetched = client.fetch({topic: 0}, isolation_level=1).responses[0].partitions[0]
    assert (fetched.last_stable_offset, fetched.aborted_transactions or ()) == (2, ())
    assert write(client, marker(topic, producer)) == [OK]
    assert client.end_offset(topic) == 2


def test_a_transaction_of_nobody_is_aborted_wherever_it_is_open(shared: ServerProcess, client: RawClient):
    topics = [new_topic(client), new_topic(client)]
    stranger = client.new_producer()
    with logbroker.open(shared.data) as broker:
        logs = [broker._directory.log(topic, 0) for topic in topics]
        for log in logs:
            log.append(bytearray(transactional(stranger)))
        assert write(client, marker(topics[0], stranger)) == [OK]
        assert [is_open(log) for log in logs] == [False, False]
        assert [log.offsets().log_end_offset for log in logs] == [2, 2]
        assert write(client, *[marker(topic, (stranger[0], 1)) for topic in topics]) == [OK, OK]
        assert [log.offsets().log_end_offset for log in logs] == [2, 2]


def test_a_marker_of_an_older_epoch_is_refused(client: RawClient):
    topic = new_topic(client)
    producer_id, _ = client.new_producer()
    assert client.produce(topic, batch(b"v", producer_id=producer_id, producer_epoch=3, base_sequence=0))
    assert write(client, marker(topic, (producer_id, 2))) == [ErrorCode.invalid_producer_epoch]
    assert write(client, marker(topic, (producer_id, 3))) == [OK]


def test_a_marker_for_no_partition_or_no_producer_changes_nothing(client: RawClient):
    topic = new_topic(client)
    asked = [
        marker("nowhere", (1, 0)),
        marker(topic, (1, 0), partition=1),
        marker(topic, (1, 0), partition=-1),
        marker(topic, (-1, -1)),
        marker(topic, (2**63 - 1, 2**15 - 1)),
    ]
    assert write(client, *asked) == [UNKNOWN, UNKNOWN, UNKNOWN, OK, OK]
    assert client.end_offset(topic) == 0


def test_many_markers_are_answered_soon(client: RawClient):
    """Who holds a transaction is looked up once for each producer."""
    topic = new_topic(client)
    _, producer = begin(client, topic)
    asked = marker(topic, producer)
    asked["topics"][0]["partition_indexes"] = [0] * 50_000
    began = time.monotonic()
    assert set(write(client, asked)) == {FENCED}
    assert time.monotonic() - began < 60
