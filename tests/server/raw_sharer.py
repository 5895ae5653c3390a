"""A member of a share group over the raw client, request by request.

    sharer = RawSharer(port, "g", {"t": topic_id})     joins, on a connection of its own
    found = sharer.fetch(max_records=5)                what it acquired: ``found.ranges``, ``found.records``
    sharer.acknowledge(0, [(0, 4, ACCEPT)])            the error code of the partition

Partitions are those of one topic. The session's epochs are counted here.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from kio.schema.errors import ErrorCode

from .raw_client import RawClient

GAP, ACCEPT, RELEASE, REJECT, RENEW = range(5)
SHARE_HEARTBEAT, SHARE_DESCRIBE, SHARE_FETCH, SHARE_ACKNOWLEDGE = 76, 77, 78, 79
FINAL = -1
BATCH_OPTIMIZED, RECORD_LIMIT = 0, 1
BY_OFFSETS = 1 << 30  # more than any test has

Acknowledgement = tuple[int, int, int | Sequence[int]]  # first, last, the types


class Part(NamedTuple):
    """What is answered for one partition."""

    error: ErrorCode
    acknowledge_error: ErrorCode
    ranges: list[tuple[int, int, int]]
    records: bytes


class Fetched(NamedTuple):
    """An answer to a fetch, by partition."""

    error: ErrorCode
    lock_ms: float
    parts: dict[int, Part]

    @property
    def ranges(self) -> list[tuple[int, int, int]]:
        """First and last offset, and delivery count, of what was acquired of partition 0."""
        return self.parts[0].ranges if 0 in self.parts else []

    @property
    def records(self) -> bytes:
        return self.parts[0].records if 0 in self.parts else b""


def acknowledgements(batches: Sequence[Acknowledgement]) -> list[dict[str, Any]]:
    return [
        {
            "first_offset": first,
            "last_offset": last,
            "acknowledge_types": [types] if isinstance(types, int) else list(types),
        }
        for first, last, types in batches
    ]


class RawSharer:
    """One member, and its session."""

    def __init__(self, port: int, group: str, topic: str, topic_id: uuid.UUID, *, version: int = 2) -> None:
        self.client = RawClient(port)
        self.member = {"group_id": group, "member_id": str(uuid.uuid4())}
        self.topic, self.topic_id = topic, topic_id
        self.version = version
        self.epoch = 0
        joined = self.heartbeat(0, subscribed_topic_names=[topic])
        assert joined.error_code is ErrorCode.none, joined.error_message

    def heartbeat(self, epoch: int, **fields: Any) -> Any:
        return self.client.send(SHARE_HEARTBEAT, 1, **self.member, member_epoch=epoch, **fields)

    def close(self) -> None:
        self.client.close()

    # Requests -------------------------------------------------------------------------------------------------

    def begin_fetch(
        self,
        partitions: Sequence[int] = (0,),
        *,
        acknowledge: Sequence[Acknowledgement] = (),
        epoch: int | None = None,
        **fields: Any,
    ) -> None:
        wanted = [
            {
                "partition_index": number,
                "acknowledgement_batches": acknowledgements(acknowledge if number == partitions[0] else ()),
            }
            for number in partitions
        ]
        defaults = {
            "max_wait": 0,
            "min_bytes": 1,
            "max_bytes": 1 << 24,
            "max_records": BY_OFFSETS,
            "batch_size": BY_OFFSETS,
        }
        self.client.begin(
            SHARE_FETCH,
            self.version,
            **self.member,
            share_session_epoch=self.epoch if epoch is None else epoch,
            topics=[{"topic_id": self.topic_id, "partitions": wanted}] if wanted else [],
            **(defaults | fields),
        )
        if epoch is None:
            self.epoch += 1

    def finish_fetch(self) -> Fetched:
        answer = self.client.receive()
        return Fetched(
            error=answer.error_code,
            lock_ms=answer.acquisition_lock_timeout.total_seconds() * 1000,
            parts={
                part.partition_index: Part(
                    error=part.error_code,
                    acknowledge_error=ErrorCode(part.acknowledge_error_code),
                    ranges=[
                        (one.first_offset, one.last_offset, one.delivery_count)
                        for one in part.acquired_records
                    ],
                    records=bytes(part.records or b""),
                )
                for topic in answer.responses
                for part in topic.partitions
            },
        )

    def fetch(self, partitions: Sequence[int] = (0,), **options: Any) -> Fetched:
        self.begin_fetch(partitions, **options)
        return self.finish_fetch()

    def acknowledge(
        self, partition: int, batches: Sequence[Acknowledgement], *, epoch: int | None = None, **fields: Any
    ) -> ErrorCode:
        """The error of the partition, or of the whole request."""
        part = {"partition_index": partition, "acknowledgement_batches": acknowledgements(batches)}
        answer = self.client.send(
            SHARE_ACKNOWLEDGE,
            self.version,
            **self.member,
            share_session_epoch=self.epoch if epoch is None else epoch,
            topics=[{"topic_id": self.topic_id, "partitions": [part]}],
            **fields,
        )
        if epoch is None:
            self.epoch += 1
        if answer.error_code is not ErrorCode.none:
            found: ErrorCode = answer.error_code
            return found
        ((only,),) = [topic.partitions for topic in answer.responses]
        code: ErrorCode = only.error_code
        return code
