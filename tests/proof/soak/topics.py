"""What the soak's processes work on: topics that keep about 256 KiB a partition, a queue, a binding."""

from __future__ import annotations

import logbroker

PARTITIONS = 3
SPREAD = ("orders", "copies", "routed", "routed.dead", "net", "jobs.dead")
TOPICS = dict.fromkeys(SPREAD, PARTITIONS) | {"jobs": 2, "prices": 1}  # and their partitions

Config = dict[str, str | int | float | bool]
WINDOW_MS = 5_000
DELETED_LATER: Config = {"file.delete.delay.ms": 500}
BOUNDED: Config = {"retention.bytes": 256 << 10, "segment.bytes": 64 << 10, **DELETED_LATER}


def prepare(data: str) -> None:
    """The topics, subscriptions and bindings that all roles work on; each topic keeps about 256 KiB a partition."""
    with logbroker.open(data) as broker:
        for topic in SPREAD:
            broker.create_topic(topic, partitions=TOPICS[topic], config=BOUNDED)
        broker.create_topic(
            "jobs",
            partitions=TOPICS["jobs"],
            config=BOUNDED | {"deduplication.window.ms": WINDOW_MS, "retention.policy": "consumed"},
        )
        compacted: Config = DELETED_LATER | {"cleanup.policy": "compact", "segment.bytes": 64 << 10}
        broker.create_topic(
            "prices",
            partitions=TOPICS["prices"],
            config=compacted | {"min.cleanable.dirty.ratio": 0, "durability": "interval"},
        )
        broker.create_subscription(
            "workers", topic="jobs", lease=2.0, dead_letter="jobs.dead", priorities=True
        )
        broker.bind("orders", "routed", name="large", when="size(value) > 150")
