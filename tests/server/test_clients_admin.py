"""Administration over the network: topics, configurations, offsets and groups, as admin clients see and change them.

Most of it goes through librdkafka's AdminClient; what that cannot ask for, through kafka-python's. What a client
changes is looked at through the library, and the other way round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import confluent_kafka
import kafka
import kafka.errors
import pytest
from confluent_kafka import (
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    ConsumerGroupType,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

import logbroker

DEADLINE_S = 20.0
TIME_MS = 1_700_000_000_000


@pytest.fixture
def admin(server: Any) -> AdminClient:
    """librdkafka's admin client, past its start: requests that it makes meanwhile may take it seconds."""
    client = AdminClient({"bootstrap.servers": server.address})
    client.list_topics(timeout=DEADLINE_S)
    return client


@pytest.fixture
def other_admin(server: Any) -> Iterator[kafka.KafkaAdminClient]:
    """kafka-python's admin client."""
    with closing(kafka.KafkaAdminClient(bootstrap_servers=server.address)) as client:
        yield client


def done(futures: Mapping[Any, Future[Any]]) -> Any:
    """What the one thing that was asked for came to; raises what was refused."""
    (future,) = futures.values()
    return future.result(DEADLINE_S)


def refused(futures: Mapping[Any, Future[Any]]) -> int:
    """The code with which the one thing that was asked for is refused."""
    (future,) = futures.values()
    with pytest.raises(KafkaException) as told:
        future.result(DEADLINE_S)
    return int(told.value.args[0].code())


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


# Topics ---------------------------------------------------------------------------------------------------


def test_a_topic_is_made_with_partitions_and_configuration(
    admin: AdminClient, broker: logbroker.Broker
) -> None:
    """As the library sees it."""
    done(admin.create_topics([NewTopic("t", 3, 1, config={"retention.ms": "1000", "durability": "os"})]))

    topic = broker.topic("t")
    assert len(topic.partitions) == 3
    assert topic.overrides == {"retention.ms": "1000", "durability": "os"}


def test_a_topic_is_made_with_the_servers_number_of_partitions(start_server: Callable[..., Any]) -> None:
    """When the client names none."""
    server = start_server("--partitions", "5")
    admin = AdminClient({"bootstrap.servers": server.address})
    done(admin.create_topics([NewTopic("t")]))

    with logbroker.open(server.data) as broker:
        assert len(broker.topic("t").partitions) == 5


def test_a_topic_may_be_tried_without_making_it(admin: AdminClient, broker: logbroker.Broker) -> None:
    """validate_only: the same answers, and nothing is made."""
    broker.create_topic("there")

    done(admin.create_topics([NewTopic("t", 3, 1)], validate_only=True))
    assert refused(admin.create_topics([NewTopic("there", 3, 1)], validate_only=True)) == (
        KafkaError.TOPIC_ALREADY_EXISTS
    )
    assert broker.topics() == ["there"]


NO_TOPICS = {
    "exists": (NewTopic("there", 1, 1), KafkaError.TOPIC_ALREADY_EXISTS),
    "a name with a slash": (NewTopic("a/b", 1, 1), KafkaError.TOPIC_EXCEPTION),
    "a name of dots": (NewTopic("..", 1, 1), KafkaError.TOPIC_EXCEPTION),
    "a name that is too long": (NewTopic("x" * 250, 1, 1), KafkaError.TOPIC_EXCEPTION),
    "a name that speaks of partitions": (NewTopic("some partitions", 1, 1), KafkaError.TOPIC_EXCEPTION),
    "three replicas": (NewTopic("t", 1, 3), KafkaError.INVALID_REPLICATION_FACTOR),
    "a replica on a broker that is not there": (
        NewTopic("t", 2, replica_assignment=[[0], [5]]),
        KafkaError.INVALID_REPLICA_ASSIGNMENT,
    ),
    "two replicas": (
        NewTopic("t", 1, replica_assignment=[[0, 1]]),
        KafkaError.INVALID_REPLICA_ASSIGNMENT,
    ),
    "too many partitions": (NewTopic("t", 10_001, 1), KafkaError.INVALID_PARTITIONS),
    "an unknown key": (NewTopic("t", 1, 1, config={"no.such.key": "1"}), KafkaError.INVALID_CONFIG),
    "a bad value": (NewTopic("t", 1, 1, config={"retention.ms": "soon"}), KafkaError.INVALID_CONFIG),
}


@pytest.mark.parametrize(("topic", "code"), NO_TOPICS.values(), ids=NO_TOPICS)
def test_a_topic_that_cannot_be_is_refused(
    admin: AdminClient, broker: logbroker.Broker, topic: NewTopic, code: int
) -> None:
    """With the code that says why."""
    broker.create_topic("there")
    assert refused(admin.create_topics([topic])) == code
    assert broker.topics() == ["there"]


def test_of_several_topics_those_that_can_be_are_made(admin: AdminClient, broker: logbroker.Broker) -> None:
    """Each has its own answer."""
    answers = admin.create_topics([NewTopic("a", 1, 1), NewTopic("b/b", 1, 1), NewTopic("c", 1, 1)])
    errors = {name: future.exception(DEADLINE_S) for name, future in answers.items()}

    assert [name for name, error in errors.items() if error is None] == ["a", "c"]
    assert broker.topics() == ["a", "c"]


def test_a_deleted_topic_is_gone_and_can_be_made_anew(admin: AdminClient, broker: logbroker.Broker) -> None:
    """Empty, whatever was in the old one."""
    done(admin.create_topics([NewTopic("t", 2, 1)]))
    with broker.producer() as producer:
        producer.send("t", b"old", partition=0)
    done(admin.delete_topics(["t"]))
    assert broker.topics() == []
    assert refused(admin.delete_topics(["t"])) == KafkaError.UNKNOWN_TOPIC_OR_PART

    done(admin.create_topics([NewTopic("t", 1, 1)]))
    assert broker.topic("t").records == 0


def test_a_topic_gets_more_partitions_and_never_fewer(admin: AdminClient, broker: logbroker.Broker) -> None:
    """Trying it changes nothing."""
    broker.create_topic("t", partitions=2)
    done(admin.create_partitions([NewPartitions("t", 4)], validate_only=True))
    assert len(broker.topic("t").partitions) == 2
    done(admin.create_partitions([NewPartitions("t", 4)]))
    assert len(broker.topic("t").partitions) == 4

    for count in (4, 3, 20_000):
        assert refused(admin.create_partitions([NewPartitions("t", count)])) == KafkaError.INVALID_PARTITIONS
    assert refused(admin.create_partitions([NewPartitions("none", 4)])) == KafkaError.UNKNOWN_TOPIC_OR_PART


def test_new_partitions_may_be_assigned_to_the_broker_that_there_is(
    admin: AdminClient, broker: logbroker.Broker
) -> None:
    done(admin.create_topics([NewTopic("t", 1, replica_assignment=[[0]])]))
    for assignment in ([[9]], [[0, 0]]):
        asked = NewPartitions("t", 2, replica_assignment=assignment)
        assert refused(admin.create_partitions([asked])) == KafkaError.INVALID_REPLICA_ASSIGNMENT
    done(admin.create_partitions([NewPartitions("t", 2, replica_assignment=[[0]])]))
    assert len(broker.topic("t").partitions) == 2


def test_a_topic_is_described_with_its_id_and_leaders(admin: AdminClient, broker: logbroker.Broker) -> None:
    """One broker leads everything."""
    broker.create_topic("t", partitions=3)
    described = done(admin.describe_topics(TopicCollection(["t"])))

    assert described.name == "t"
    assert not described.is_internal
    assert [part.id for part in described.partitions] == [0, 1, 2]
    assert {part.leader.id for part in described.partitions} == {0}
    assert {tuple(node.id for node in part.isr) for part in described.partitions} == {(0,)}


def test_a_topic_that_is_not_there_cannot_be_described(admin: AdminClient, broker: logbroker.Broker) -> None:
    """And is not made by asking for it."""
    assert refused(admin.describe_topics(TopicCollection(["none"]))) == KafkaError.UNKNOWN_TOPIC_OR_PART
    assert broker.topics() == []


def test_the_cluster_is_one_broker_at_the_address_it_was_asked_at(server: Any, admin: AdminClient) -> None:
    """With an id that lasts."""
    cluster = admin.describe_cluster().result(DEADLINE_S)
    assert [(node.id, f"{node.host}:{node.port}") for node in cluster.nodes] == [(0, server.address)]
    assert cluster.controller.id == 0

    server.kill()
    server.start()
    other = AdminClient({"bootstrap.servers": server.address})
    again = other.describe_cluster().result(DEADLINE_S)
    assert again.cluster_id == cluster.cluster_id


def test_all_topics_are_listed_but_the_brokers_own(admin: AdminClient, broker: logbroker.Broker) -> None:
    """Hundreds of partitions in one answer."""
    for number in range(30):
        broker.create_topic(f"t{number}", partitions=20)
    with broker.transaction("with-state") as transaction:
        transaction.state[b"k"] = b"v"

    topics = admin.list_topics(timeout=DEADLINE_S).topics
    assert set(topics) == {f"t{number}" for number in range(30)}
    assert {len(topic.partitions) for topic in topics.values()} == {20}


def test_a_thousand_partitions_are_known_in_no_time(
    admin: AdminClient, other_admin: kafka.KafkaAdminClient
) -> None:
    """To make, to list and to describe them."""
    started_s = time.monotonic()
    done(admin.create_topics([NewTopic("wide", 1_000, 1)]))
    listed = admin.list_topics("wide", timeout=DEADLINE_S).topics["wide"]
    (described,) = other_admin.describe_topics(["wide"])

    assert sorted(listed.partitions) == list(range(1_000))
    assert sorted(part["partition_index"] for part in described["partitions"]) == list(range(1_000))
    assert time.monotonic() - started_s < 10


# Configurations -------------------------------------------------------------------------------------------


def config_of(admin: AdminClient, topic: str = "t") -> dict[str, ConfigEntry]:
    entries: dict[str, ConfigEntry] = done(
        admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)])
    )
    return entries


def change(admin: AdminClient, key: str, value: str | None, operation: AlterConfigOpType, **how: Any) -> Any:
    entry = ConfigEntry(key, value, incremental_operation=operation)
    resource = ConfigResource(ResourceType.TOPIC, "t", incremental_configs=[entry])
    return admin.incremental_alter_configs([resource], **how)


SET, DELETE, APPEND, SUBTRACT = (
    AlterConfigOpType.SET,
    AlterConfigOpType.DELETE,
    AlterConfigOpType.APPEND,
    AlterConfigOpType.SUBTRACT,
)


def test_a_topics_configuration_is_described_with_its_defaults(
    admin: AdminClient, broker: logbroker.Broker
) -> None:
    """Every key there is, and which of them are the topic's own."""
    broker.create_topic("t", config={"retention.ms": 1_000})
    entries = config_of(admin)

    replicas = entries.pop("min.insync.replicas")
    assert {name: entry.value for name, entry in entries.items()} == broker.topic("t").config
    assert [name for name, entry in entries.items() if not entry.is_default] == ["retention.ms"]
    assert (replicas.value, replicas.is_default, replicas.is_read_only) == ("1", True, True)


def test_how_many_replicas_are_needed_is_told_and_cannot_be_changed(
    admin: AdminClient, broker: logbroker.Broker
) -> None:
    """kafka-topics --describe --under-min-isr-partitions looks it up, whether it is there or not."""
    broker.create_topic("t")
    done(change(admin, "min.insync.replicas", None, DELETE))
    assert refused(change(admin, "min.insync.replicas", "2", SET)) == KafkaError.INVALID_CONFIG
    assert broker.topic("t").overrides == {}


def test_what_is_there_or_not_is_told_without_a_call_of_the_library(
    admin: AdminClient, broker: logbroker.Broker
) -> None:
    broker.create_topic("t")
    for asked, message in (
        (admin.create_topics([NewTopic("t", 1)]), "topic 't' already exists"),
        (admin.create_partitions([NewPartitions("no", 2)]), "topic 'no' does not exist"),
    ):
        (answer,) = asked.values()
        with pytest.raises(KafkaException) as caught:
            answer.result(30)
        assert caught.value.args[0].str() == message


def test_one_key_is_set_and_goes_back_to_its_default(admin: AdminClient, broker: logbroker.Broker) -> None:
    """The others stay as they are."""
    broker.create_topic("t", config={"segment.bytes": 1_000_000})
    done(change(admin, "retention.ms", "5000", SET))
    assert broker.topic("t").overrides == {"segment.bytes": "1000000", "retention.ms": "5000"}
    done(change(admin, "retention.ms", None, DELETE))
    assert broker.topic("t").overrides == {"segment.bytes": "1000000"}


def test_a_cleanup_policy_grows_and_shrinks(admin: AdminClient, broker: logbroker.Broker) -> None:
    """The one key that is a list."""
    broker.create_topic("t")
    done(change(admin, "cleanup.policy", "compact", APPEND))
    assert broker.topic("t").config["cleanup.policy"] == "compact,delete"
    done(change(admin, "cleanup.policy", "delete", SUBTRACT))
    assert broker.topic("t").config["cleanup.policy"] == "compact"


NO_CHANGES = {
    "an unknown key": ("no.such.key", "1", SET, KafkaError.INVALID_CONFIG),
    "a bad value": ("retention.ms", "soon", SET, KafkaError.INVALID_CONFIG),
    "an append to what is no list": ("retention.ms", "1", APPEND, KafkaError.INVALID_CONFIG),
}


@pytest.mark.parametrize(("key", "value", "operation", "code"), NO_CHANGES.values(), ids=NO_CHANGES)
def test_a_change_that_cannot_be_is_refused(
    admin: AdminClient,
    broker: logbroker.Broker,
    key: str,
    value: str,
    operation: AlterConfigOpType,
    code: int,
) -> None:
    """Nothing is changed."""
    broker.create_topic("t")
    assert refused(change(admin, key, value, operation)) == code
    assert broker.topic("t").overrides == {}


def test_a_change_may_be_tried(admin: AdminClient, broker: logbroker.Broker) -> None:
    """validate_only."""
    broker.create_topic("t")
    done(change(admin, "retention.ms", "5000", SET, validate_only=True))
    assert refused(change(admin, "retention.ms", "x", SET, validate_only=True)) == KafkaError.INVALID_CONFIG
    assert broker.topic("t").overrides == {}


def test_the_whole_configuration_is_replaced(admin: AdminClient, broker: logbroker.Broker) -> None:
    """What is not named goes back to its default, as AlterConfigs always did."""
    broker.create_topic("t", config={"segment.bytes": 1_000_000, "durability": "os"})
    resource = ConfigResource(
        ResourceType.TOPIC, "t", set_config={"retention.ms": "7000", "durability": "os"}
    )
    with pytest.warns(DeprecationWarning, match="alter_configs"):
        answers = admin.alter_configs([resource])
    done(answers)
    assert broker.topic("t").overrides == {"retention.ms": "7000", "durability": "os"}


def test_the_configuration_of_a_topic_that_is_not_there_is_refused(admin: AdminClient) -> None:
    """To look at and to change."""
    resource = ConfigResource(ResourceType.TOPIC, "none")
    assert refused(admin.describe_configs([resource])) == KafkaError.UNKNOWN_TOPIC_OR_PART


def test_the_brokers_configuration_can_be_looked_at(server: Any, admin: AdminClient) -> None:
    """And is told when it is started, so it cannot be changed."""
    entries = done(admin.describe_configs([ConfigResource(ResourceType.BROKER, "0")]))
    assert entries["advertised.listeners"].value == f"PLAINTEXT://{server.address}"
    assert all(entry.is_read_only for entry in entries.values())

    entry = ConfigEntry("num.partitions", "3", incremental_operation=SET)
    resource = ConfigResource(ResourceType.BROKER, "0", incremental_configs=[entry])
    assert refused(admin.incremental_alter_configs([resource])) == KafkaError.INVALID_REQUEST


# Records --------------------------------------------------------------------------------------------------


@pytest.fixture
def timed(broker: logbroker.Broker) -> TopicPartition:
    """A partition of ten records, a second apart but for the newest, which is the third."""
    broker.create_topic("timed")
    with broker.producer() as producer:
        for number in range(10):
            producer.send("timed", b"v", timestamp=TIME_MS + (60_000 if number == 3 else 1_000 * number))
    return TopicPartition("timed", 0)


SPECS = {
    "earliest": (OffsetSpec.earliest(), 0, -1),
    "latest": (OffsetSpec.latest(), 10, -1),
    "the newest timestamp": (OffsetSpec.max_timestamp(), 3, TIME_MS + 60_000),
    "a time": (OffsetSpec.for_timestamp(TIME_MS + 2_000), 2, TIME_MS + 2_000),
    "a time between": (OffsetSpec.for_timestamp(TIME_MS + 1_500), 2, TIME_MS + 2_000),
    "a time behind all": (OffsetSpec.for_timestamp(TIME_MS + 60_001), -1, -1),
}


@pytest.mark.parametrize(("spec", "offset", "timestamp_ms"), SPECS.values(), ids=SPECS)
def test_offsets_are_listed(
    admin: AdminClient, timed: TopicPartition, spec: OffsetSpec, offset: int, timestamp_ms: int
) -> None:
    """With the timestamp of the record that is there."""
    found = done(admin.list_offsets({timed: spec}))
    assert (found.offset, found.timestamp) == (offset, timestamp_ms)


def test_the_newest_timestamp_of_an_empty_partition_is_nowhere(
    admin: AdminClient, broker: logbroker.Broker
) -> None:
    """Not at offset 0."""
    broker.create_topic("t")
    found = done(admin.list_offsets({TopicPartition("t", 0): OffsetSpec.max_timestamp()}))
    assert (found.offset, found.timestamp) == (-1, -1)


def test_records_are_deleted_up_to_an_offset_or_all_of_them(
    admin: AdminClient, broker: logbroker.Broker, timed: TopicPartition
) -> None:
    """An offset above the end is refused."""
    assert done(admin.delete_records([TopicPartition("timed", 0, 4)])).low_watermark == 4
    assert broker.topic("timed").partitions[0].log_start_offset == 4
    assert refused(admin.delete_records([TopicPartition("timed", 0, 11)])) == KafkaError.OFFSET_OUT_OF_RANGE
    everything = TopicPartition("timed", 0, confluent_kafka.OFFSET_END)
    assert done(admin.delete_records([everything])).low_watermark == 10


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_records_are_not_deleted_of_a_topic_that_is_only_compacted(
    admin: AdminClient, broker: logbroker.Broker, policy: str
) -> None:
    """It keeps the newest of every key."""
    broker.create_topic("t", config={"cleanup.policy": policy})
    with broker.producer() as producer:
        producer.send("t", b"value", key=b"key")
    asked = [TopicPartition("t", 0, confluent_kafka.OFFSET_END)]
    if policy == "compact":
        assert refused(admin.delete_records(asked)) == KafkaError.POLICY_VIOLATION
    else:
        assert done(admin.delete_records(asked)).low_watermark == 1
    assert broker.topic("t").records == (policy == "compact")


def test_sizes_are_those_of_the_log(
    server: Any, broker: logbroker.Broker, other_admin: kafka.KafkaAdminClient, timed: TopicPartition
) -> None:
    """DescribeLogDirs."""
    (answer,) = other_admin.describe_log_dirs()
    (directory,) = answer["log_dirs"] if "log_dirs" in answer else answer["results"]
    (topic,) = directory["topics"]
    (partition,) = topic["partitions"]

    assert Path(directory["log_dir"]).is_relative_to(server.data)
    assert partition["partition_size"] == broker.topic("timed").partitions[0].size_bytes > 0
    assert directory["total_bytes"] >= directory["usable_bytes"] > 0


# Groups ---------------------------------------------------------------------------------------------------

PROTOCOLS = pytest.mark.parametrize("protocol", ["classic", "consumer"])
TYPES = {"classic": ConsumerGroupType.CLASSIC, "consumer": ConsumerGroupType.CONSUMER}


@pytest.fixture
def member(server: Any, broker: logbroker.Broker) -> Iterator[Callable[[str], confluent_kafka.Consumer]]:
    """Have a member be in group ``g``, with the four partitions of ``t``: ``member("classic")``."""
    broker.create_topic("t", partitions=4)
    with ExitStack() as consumers:

        def start(protocol: str) -> confluent_kafka.Consumer:
            settings: dict[str, Any] = {
                "bootstrap.servers": server.address,
                "group.id": "g",
                "client.id": "me",
                "group.protocol": protocol,
            }
            consumer = consumers.enter_context(closing(confluent_kafka.Consumer(settings)))
            consumer.subscribe(["t"])
            until(
                lambda: consumer.poll(0.05) or len(consumer.assignment()) == 4,
                "the member has its partitions",
            )
            return consumer

        yield start


def commit(server: Any, group: str, *places: TopicPartition) -> None:
    """Commit for a group without being in it."""
    settings = {"bootstrap.servers": server.address, "group.id": group}
    with closing(confluent_kafka.Consumer(settings)) as consumer:
        consumer.commit(offsets=list(places), asynchronous=False)


@PROTOCOLS
def test_a_group_is_described_with_its_members(
    admin: AdminClient, member: Callable[[str], confluent_kafka.Consumer], protocol: str
) -> None:
    """Who they are, and what they read."""
    member(protocol)
    described = done(admin.describe_consumer_groups(["g"]))

    assert described.state is ConsumerGroupState.STABLE
    assert described.type is TYPES[protocol]
    (found,) = described.members
    assert found.client_id == "me"
    assert "127.0.0.1" in found.host
    places = {(place.topic, place.partition) for place in found.assignment.topic_partitions}
    assert places == {("t", number) for number in range(4)}


@PROTOCOLS
def test_groups_are_listed_with_their_state_and_type(
    server: Any,
    admin: AdminClient,
    member: Callable[[str], confluent_kafka.Consumer],
    protocol: str,
) -> None:
    """All of them, or those of a state."""
    member(protocol)
    commit(server, "only-offsets", TopicPartition("t", 0, 0))

    listed = admin.list_consumer_groups().result(DEADLINE_S).valid
    assert {(group.group_id, group.state) for group in listed} == {
        ("g", ConsumerGroupState.STABLE),
        ("only-offsets", ConsumerGroupState.EMPTY),
    }
    assert {group.type for group in listed if group.group_id == "g"} == {TYPES[protocol]}
    empty = admin.list_consumer_groups(states={ConsumerGroupState.EMPTY}).result(DEADLINE_S).valid
    assert [group.group_id for group in empty] == ["only-offsets"]
    of_type = admin.list_consumer_groups(types={TYPES[protocol]}).result(DEADLINE_S).valid
    assert "g" in [group.group_id for group in of_type]


def test_a_group_of_the_librarys_consumers_is_listed_too(
    admin: AdminClient, broker: logbroker.Broker
) -> None:
    """Every group of the directory."""
    broker.create_topic("t")
    with broker.consumer("t", group="embedded") as consumer:
        consumer.poll()
        listed = admin.list_consumer_groups().result(DEADLINE_S).valid
    assert [(group.group_id, group.state) for group in listed] == [("embedded", ConsumerGroupState.STABLE)]


@PROTOCOLS
def test_a_group_is_deleted_when_nobody_is_in_it(
    admin: AdminClient,
    broker: logbroker.Broker,
    member: Callable[[str], confluent_kafka.Consumer],
    protocol: str,
) -> None:
    """With its offsets."""
    consumer = member(protocol)
    consumer.commit(offsets=[TopicPartition("t", 0, 0)], asynchronous=False)
    assert refused(admin.delete_consumer_groups(["g"])) == KafkaError.NON_EMPTY_GROUP

    consumer.close()
    done(admin.delete_consumer_groups(["g"]))
    assert broker.groups() == []
    assert refused(admin.delete_consumer_groups(["g"])) == KafkaError.GROUP_ID_NOT_FOUND


def test_a_groups_offsets_are_listed(server: Any, admin: AdminClient, broker: logbroker.Broker) -> None:
    """Those that are asked for, or all."""
    broker.create_topic("t", partitions=3)
    commit(server, "g", TopicPartition("t", 0, 5), TopicPartition("t", 2, 7))

    everything = done(admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions("g")]))
    assert {(place.partition, place.offset) for place in everything.topic_partitions} == {(0, 5), (2, 7)}
    asked = ConsumerGroupTopicPartitions("g", [TopicPartition("t", 0), TopicPartition("t", 1)])
    some = done(admin.list_consumer_group_offsets([asked]))
    assert {(place.partition, place.offset) for place in some.topic_partitions} == {
        (0, 5),
        (1, confluent_kafka.OFFSET_INVALID),
    }


@PROTOCOLS
def test_a_groups_offsets_are_altered_when_nobody_is_in_it(
    admin: AdminClient,
    broker: logbroker.Broker,
    member: Callable[[str], confluent_kafka.Consumer],
    protocol: str,
) -> None:
    """Its members would not notice."""
    consumer = member(protocol)
    asked = [ConsumerGroupTopicPartitions("g", [TopicPartition("t", 1, 9)])]
    assert is_refused_for_members(admin, asked)

    consumer.close()
    done(admin.alter_consumer_group_offsets(asked))
    offsets = {place.partition: place.committed_offset for place in broker.group("g").offsets}
    assert offsets[1] == 9


def is_refused_for_members(admin: AdminClient, asked: list[ConsumerGroupTopicPartitions]) -> bool:
    """As a whole, or each partition."""
    codes = (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP, KafkaError.ILLEGAL_GENERATION)
    try:
        answer = done(admin.alter_consumer_group_offsets(asked))
    except KafkaException as error:
        return error.args[0].code() in codes
    return all(place.error and place.error.code() in codes for place in answer.topic_partitions)


def test_the_offsets_of_a_topic_that_is_read_are_not_deleted(
    server: Any,
    other_admin: kafka.KafkaAdminClient,
    broker: logbroker.Broker,
    member: Callable[[str], confluent_kafka.Consumer],
) -> None:
    """Those of another topic are; and of any, when nobody is in the group."""
    broker.create_topic("unread")
    commit(server, "g", TopicPartition("t", 0, 1), TopicPartition("unread", 0, 2))
    consumer = member("classic")
    read, unread = kafka.TopicPartition("t", 0), kafka.TopicPartition("unread", 0)

    answer = other_admin.delete_group_offsets("g", [read, unread])
    assert answer[read] is kafka.errors.GroupSubscribedToTopicError
    assert answer[unread] is kafka.errors.NoError
    assert _committed(broker) == {("t", 0): 1}
    consumer.close()
    assert other_admin.delete_group_offsets("g", [read])[read] is kafka.errors.NoError
    assert _committed(broker) == {}


def _committed(broker: logbroker.Broker, group: str = "g") -> dict[tuple[str, int], int]:
    return {
        (place.topic, place.partition): place.committed_offset
        for place in broker.group(group).offsets
        if place.committed_offset is not None
    }


def test_a_groups_offsets_are_reset_to_the_ends_of_its_partitions(
    other_admin: kafka.KafkaAdminClient, broker: logbroker.Broker, timed: TopicPartition
) -> None:
    """kafka-python asks for the ends, and commits them."""
    place = kafka.TopicPartition("timed", 0)
    other_admin.alter_group_offsets("g", {place: kafka.OffsetAndMetadata(3, "", -1)})
    assert _committed(broker) == {("timed", 0): 3}
    other_admin.reset_group_offsets("g", {place: kafka.OffsetSpec.LATEST})
    assert _committed(broker) == {("timed", 0): 10}


def test_a_member_is_removed_from_its_group(
    other_admin: kafka.KafkaAdminClient, server: Any, broker: logbroker.Broker
) -> None:
    """A static one, by its name: it does not come back, and need not be waited for."""
    broker.create_topic("t")
    settings = {"bootstrap.servers": server.address, "group.id": "g", "group.instance.id": "one"}
    with closing(confluent_kafka.Consumer(settings)) as consumer:
        consumer.subscribe(["t"])
        until(lambda: consumer.poll(0.05) or consumer.assignment(), "the member has its partition")
    gone = kafka.admin.MemberToRemove(group_instance_id="one")
    assert list(other_admin.remove_group_members("g", [gone]).values()) == [kafka.errors.NoError]
    assert other_admin.describe_groups(["g"])["g"]["group_state"] == "Empty"
