"""The APIs that are served: one row each, with the versions, and who answers.

The versions are those that Kafka 4.3 advertises. Produce is advertised from 0, because librdkafka takes a broker
without Produce 0 to 2 for one that cannot compress, and served from 3.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from .frames import FrameError
from .handlers import (
    access,
    api_versions,
    configs,
    consumer_groups,
    fetch,
    group_admin,
    groups,
    list_offsets,
    metadata,
    offsets,
    produce,
    replicas,
    share_fetch,
    share_groups,
    share_offsets,
    topics,
    transaction_markers,
    transactions,
)
from .node import Node
from .replies import Buffer
from .requests import Request
from .settings import ServerSettings

Answer = bytes | list[Buffer] | None  # None: nothing is sent
Handler = Callable[[Node, Request], Awaitable[Answer | Awaitable[Answer]]]

PRODUCE_KEY = 0
API_VERSIONS_KEY = 18
MAX_SMALL_REQUEST_BYTES = 4 << 20


class Api(NamedTuple):
    """A kind of request. ``first_served`` is the lowest version that is taken, if not the lowest advertised."""

    name: str
    advertised: range
    handler: Handler
    first_served: int = 0


def _versions(first: int, last: int) -> range:
    return range(first, last + 1)


async def _api_versions(node: Node, request: Request) -> bytes:  # noqa: ARG001 (a handler)
    return api_versions.answer(request, ADVERTISED)


APIS: dict[int, Api] = {
    PRODUCE_KEY: Api("Produce", _versions(0, 13), produce.handle, first_served=3),
    1: Api("Fetch", _versions(4, 18), fetch.handle),
    2: Api("ListOffsets", _versions(1, 11), list_offsets.handle),
    3: Api("Metadata", _versions(0, 13), metadata.metadata),
    8: Api("OffsetCommit", _versions(2, 10), offsets.commit),
    9: Api("OffsetFetch", _versions(1, 10), offsets.fetch),
    10: Api("FindCoordinator", _versions(0, 6), groups.find_coordinator),
    11: Api("JoinGroup", _versions(0, 9), groups.join_group),
    12: Api("Heartbeat", _versions(0, 4), groups.heartbeat),
    13: Api("LeaveGroup", _versions(0, 5), groups.leave_group),
    14: Api("SyncGroup", _versions(0, 5), groups.sync_group),
    15: Api("DescribeGroups", _versions(0, 6), group_admin.describe_groups),
    16: Api("ListGroups", _versions(0, 5), group_admin.list_groups),
    API_VERSIONS_KEY: Api("ApiVersions", _versions(0, 4), _api_versions),
    19: Api("CreateTopics", _versions(2, 7), topics.create),
    20: Api("DeleteTopics", _versions(1, 6), topics.delete),
    21: Api("DeleteRecords", _versions(0, 2), topics.delete_records),
    22: Api("InitProducerId", _versions(0, 5), transactions.init_producer_id),
    23: Api("OffsetForLeaderEpoch", _versions(2, 4), list_offsets.offset_for_leader_epoch),
    24: Api("AddPartitionsToTxn", _versions(0, 5), transactions.add_partitions),
    25: Api("AddOffsetsToTxn", _versions(0, 4), transactions.add_offsets),
    26: Api("EndTxn", _versions(0, 5), transactions.end),
    27: Api("WriteTxnMarkers", _versions(1, 2), transaction_markers.write),
    28: Api("TxnOffsetCommit", _versions(0, 5), transactions.commit_offsets),
    29: Api("DescribeAcls", _versions(1, 3), access.describe_acls),
    30: Api("CreateAcls", _versions(1, 3), access.create_acls),
    31: Api("DeleteAcls", _versions(1, 3), access.delete_acls),
    32: Api("DescribeConfigs", _versions(1, 4), configs.describe),
    33: Api("AlterConfigs", _versions(0, 2), configs.alter),
    35: Api("DescribeLogDirs", _versions(1, 4), topics.describe_log_dirs),
    37: Api("CreatePartitions", _versions(0, 3), topics.create_partitions),
    42: Api("DeleteGroups", _versions(0, 2), group_admin.delete_groups),
    43: Api("ElectLeaders", _versions(0, 2), replicas.elect_leaders),
    44: Api("IncrementalAlterConfigs", _versions(0, 1), configs.alter_incrementally),
    45: Api("AlterPartitionReassignments", _versions(0, 1), replicas.alter_reassignments),
    46: Api("ListPartitionReassignments", _versions(0, 0), replicas.list_reassignments),
    47: Api("OffsetDelete", _versions(0, 0), offsets.delete),
    48: Api("DescribeClientQuotas", _versions(0, 1), access.describe_client_quotas),
    50: Api("DescribeUserScramCredentials", _versions(0, 0), access.describe_scram_credentials),
    60: Api("DescribeCluster", _versions(0, 2), metadata.describe_cluster),
    61: Api("DescribeProducers", _versions(0, 0), transactions.describe_producers),
    65: Api("DescribeTransactions", _versions(0, 0), transactions.describe_transactions),
    66: Api("ListTransactions", _versions(0, 2), transactions.list_transactions),
    68: Api("ConsumerGroupHeartbeat", _versions(0, 1), consumer_groups.heartbeat),
    69: Api("ConsumerGroupDescribe", _versions(0, 1), consumer_groups.describe),
    74: Api("ListConfigResources", _versions(0, 1), configs.list_resources),
    75: Api("DescribeTopicPartitions", _versions(0, 0), metadata.describe_topic_partitions),
    76: Api("ShareGroupHeartbeat", _versions(1, 1), share_groups.heartbeat),
    77: Api("ShareGroupDescribe", _versions(1, 1), share_groups.describe),
    78: Api("ShareFetch", _versions(1, 2), share_fetch.fetch),
    79: Api("ShareAcknowledge", _versions(1, 2), share_fetch.acknowledge),
    90: Api("DescribeShareGroupOffsets", _versions(0, 1), share_offsets.describe),
    91: Api("AlterShareGroupOffsets", _versions(0, 0), share_offsets.alter),
    92: Api("DeleteShareGroupOffsets", _versions(0, 0), share_offsets.delete),
}

ADVERTISED: dict[int, range] = {key: api.advertised for key, api in APIS.items()}

VERSIONS: dict[int, range] = {
    key: range(max(api.first_served, api.advertised.start), api.advertised.stop) for key, api in APIS.items()
}


def limit_of(api_key: int, settings: ServerSettings) -> int:
    """The longest request of an API, in bytes.

    Raises:
        FrameError: there is no such API.
    """
    if api_key == PRODUCE_KEY:
        return settings.max_request_bytes
    if api_key not in APIS:
        raise FrameError(f"API {api_key} is not served")
    return min(MAX_SMALL_REQUEST_BYTES, settings.max_request_bytes)
