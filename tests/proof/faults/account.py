"""What callers were told, and whether the log agrees.

    told        when                                             afterwards
    DONE        the call returned                                it is there, once, in order
    REFUSED     it raised WriteFailedError                       it is not there
    UNKNOWN     it raised another error of a disk                it is there, once, or not

Nothing else may be there.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field

import logbroker
from logbroker import Record

DEAD = "jobs.dead"


class Told(enum.Enum):
    """The answer to a call that writes."""

    DONE = "done"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass
class Decision:
    """Records of a transaction: all of them are there, or none."""

    records: list[tuple[str, bytes]]
    told: Told


@dataclass
class Account:
    """What one process was told about what it wrote."""

    records: dict[str, list[tuple[bytes, Told]]] = field(
        default_factory=dict
    )  # by topic, in the order of sending
    decisions: list[Decision] = field(default_factory=list)
    offsets: dict[str, set[int | None]] = field(default_factory=dict)  # by group: where it may be in "plain"
    topics: dict[str, set[bool]] = field(default_factory=dict)  # by name: whether it may be there
    messages: dict[bytes, set[str]] = field(
        default_factory=dict
    )  # of the queue, by value: "left", "dead", "done"

    keys: dict[bytes, bytes] = field(default_factory=dict)  # of values of compacted topics
    aged: set[bytes] = field(default_factory=set)  # values that retention may have removed, oldest first

    def add(self, topic: str, value: bytes, told: Told, *, key: bytes | None = None) -> None:
        self.records.setdefault(topic, []).append((value, told))
        if key is not None:
            self.keys[value] = key

    def check(self, broker: logbroker.Broker) -> None:
        """That *broker* holds what was told."""
        topics = set(broker.topics())
        for name, allowed in self.topics.items():
            assert (name in topics) in allowed, f"topic {name!r}: there: {name in topics}, may be: {allowed}"
        found = values(broker)
        for topic in topics - {DEAD}:
            self._check_records(topic, found[topic])
        for decision in self.decisions:
            _check_decision(decision, found)
        for group, allowed_offsets in self.offsets.items():
            committed = broker._directory.groups.committed(group, "plain", 0)
            offset = None if committed is None else committed.offset
            assert offset in allowed_offsets, f"group {group!r} is at {offset}, may be at {allowed_offsets}"

    def check_queue(self, broker: logbroker.Broker) -> None:
        """That each message is in one place where it may be, after all that are left were taken out."""
        dead = values(broker)[DEAD]
        left: list[bytes] = []
        with broker.queue(subscription="workers") as queue:
            while messages := queue.receive_many(1000):
                left += [message.value or b"" for message in messages]
                messages.accept()
        dead_now = values(broker)[DEAD]
        assert dead_now[: len(dead)] == dead, f"dead letters changed from {dead} to {dead_now}"
        several = [value for value, count in Counter([*left, *dead_now]).items() if count > 1]
        assert not several, f"in two places: {several}"
        for value, told in self.records.get("jobs", []):
            where = "left" if value in left else "dead" if value in dead_now else "done"
            allowed = self.messages.get(value, {"left"}) if told is Told.DONE else {"left", "done"}
            assert where in allowed, f"{value!r} is {where}, may be {allowed}"

    def _check_records(self, topic: str, found: list[bytes]) -> None:
        several = [value for value, count in Counter(found).items() if count > 1]
        assert not several, f"{topic}: twice: {several}"
        sent = self.records.get(topic, [])
        there = set(found)
        done = [value for value, told in sent if told is Told.DONE]
        lost = [value for value in done if value not in there and not self._may_be_gone(value, found)]
        assert not lost, f"{topic}: acknowledged and lost: {lost}"
        refused = [value for value, told in sent if told is Told.REFUSED and value in there]
        assert not refused, f"{topic}: there although it was refused: {refused}"
        sent_values = [value for value, _ in sent]
        in_order = [value for value in sent_values if value in there]
        assert [value for value in found if value in set(sent_values)] == in_order, f"{topic}: {found}"
        known = set(sent_values).union(
            value for decision in self.decisions for name, value in decision.records if name == topic
        )
        invented = [value for value in found if value not in known]
        assert not invented, f"{topic}: nobody sent {invented}"

    def _may_be_gone(self, value: bytes, found: list[bytes]) -> bool:
        """Whether retention may have removed *value*, or compaction, as a later one of its key is there."""
        if value in self.aged:
            return True
        key = self.keys.get(value)
        values = list(self.keys)
        later = values[values.index(value) + 1 :] if key is not None else []
        return any(self.keys[other] == key and other in found for other in later)


def _check_decision(decision: Decision, found: dict[str, list[bytes]]) -> None:
    there = [record for record in decision.records if record[1] in found.get(record[0], ())]
    assert len(there) in (0, len(decision.records)), f"half a transaction: {there} of {decision.records}"
    if decision.told is Told.DONE:
        assert there, f"committed and lost: {decision.records}"
    if decision.told is Told.REFUSED:
        assert not there, f"there although its commit was refused: {there}"


def values(broker: logbroker.Broker) -> dict[str, list[bytes]]:
    """Every committed value of each topic, one partition after the other."""
    topics = broker.topics()
    found: list[Record] = []
    if topics:
        with broker.consumer(topics) as consumer:
            while records := consumer.poll(100_000):
                found += records
    by_topic: dict[str, list[bytes]] = {topic: [] for topic in topics}
    for record in sorted(found, key=lambda record: record.partition):
        by_topic[record.topic].append(record.value or b"")
    return by_topic
