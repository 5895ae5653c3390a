"""The witness: reads all diaries and the log, again and again, and holds one against the other.

It is one more process that has the directory open while it looks, and has closed it in between. What it has read of
the logs it commits for a group of its own, so that the cleaner may remove it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import logbroker
from logbroker.broker import Broker
from logbroker.records import Record
from logbroker_storage.data_directory import DataDirectory
from logbroker_tools.findings import Severity
from logbroker_tools.layout import find
from logbroker_tools.verify import verify
from logbroker_tools.verify.side_files import ADVICE_SIDE_FILE

from .crew import Crew, Ending, Worker
from .handed_out import HandedOut
from .in_hands import InHands
from .made import Made
from .roles import KEYS, LEASE_S, PARTITIONS, TOMBSTONE_EVERY
from .values import read_value
from .written import Derived, Newest, Pairs, Written

READ_TOPICS = ("t", "jobs", "out", "left", "right")
LONGEST_S = 60.0  # what takes longer is held up for ever

Config = dict[str, str | int | float | bool]
SMALL: Config = {"segment.bytes": 30_000, "retention.policy": "consumed", "file.delete.delay.ms": 0}
CONFIGS: dict[str, Config] = {
    "t": {**SMALL},
    "jobs": {**SMALL, "durability": "os"},
    "out": {**SMALL, "durability": "interval"},
    "left": {**SMALL, "durability": "os"},
    "right": {**SMALL},
    "c": {
        "cleanup.policy": "compact",
        "segment.bytes": 4_000,
        "min.cleanable.dirty.ratio": 0,
        "file.delete.delay.ms": 0,
    },
}
GROUPS = {"readers": ("t",), "enrichers": ("jobs",), "witness": READ_TOPICS}
QUEUES = {"work": "workers", "pay": "payers"}  # by role


def prepare(data: Path) -> None:
    """The topics and queues that the workers use."""
    with logbroker.open(data) as broker:
        for topic, config in CONFIGS.items():
            broker.create_topic(topic, partitions=PARTITIONS[topic], config=config)
        for queue in QUEUES.values():
            broker.create_subscription(queue, topic="jobs", lease=LEASE_S, max_deliveries=10_000)
        for group, topics in GROUPS.items():  # the cleaner keeps for them what they have not read
            broker.consumer(topics, group=group, delivery="manual").close()


class Witness:
    """What is known of one data directory, and of those who work on it."""

    def __init__(self, data: Path, crew: Crew) -> None:
        self._data = data
        self._crew = crew
        self.written = Written()
        self._newest = Newest(KEYS, TOMBSTONE_EVERY)
        self.handed_out = HandedOut()
        self.queues = {role: InHands(LEASE_S) for role in QUEUES}
        self.derived = Derived()
        self.pairs = Pairs()
        self.made = Made()
        self.progress: Counter[str] = Counter()  # notes by role
        self._committed: dict[tuple[str, str, int], int] = {}  # by group, topic and partition

    # Diaries ------------------------------------------------------------------------------------------

    def read_diaries(self) -> None:
        """Of those who are alive; the others' were read when they ended."""
        for worker in self._crew.working:
            self._read_diary(worker)

    def _read_diary(self, worker: Worker) -> None:
        role, number = worker.life.role, worker.life.number
        for note in worker.notes.news():
            self.progress[role] += 1
            match note:
                case ["acked", "c", _, _, sequence, _]:
                    self._newest.acknowledged = max(self._newest.acknowledged, int(sequence))
                case ["acked", topic, partition, name, sequence, offset]:
                    self.written.acknowledged((topic, int(partition), name), int(sequence), int(offset))
                case ["polled", before, after, partition, first, end]:
                    self.handed_out.polled(
                        number, float(before), float(after), int(partition), int(first), int(end)
                    )
                case ["received", before, after, partition, offset]:
                    place = (int(partition), int(offset))
                    self.queues[role].received(number, float(before), float(after), place)
                case ["settling", before, partition, offset]:
                    self.queues[role].settling(number, float(before), (int(partition), int(offset)))
                case ["accepted" | "rejected" | "released" | "lost" as how, after, partition, offset]:
                    place = (int(partition), int(offset))
                    self.queues[role].settled(number, how, float(after), place)
                case ["making" | "made" | "deleting" | "deleted" as kind, topic]:
                    self.made.note(number, kind, topic)
                case ["wrote", topic, count]:
                    self.made.note(number, "wrote", topic, int(count))
                case ["derived" | "cleaned", _] | ["opened"] | ["left"]:
                    pass
                case _:
                    raise AssertionError(f"{worker} noted {note}")

    def bury(self, worker: Worker) -> Ending:
        """Read the last of what a worker has to say; it was killed, or has left."""
        ending = self._crew.bury(worker)
        ending.check()
        self._read_diary(worker)
        if worker.life.role in self.queues:
            at = time.monotonic() if worker.killed is None else worker.killed
            self.queues[worker.life.role].ended(worker.life.number, at)
        self.handed_out.ended(worker.life.number)
        if os.path.exists(worker.life.diary):
            os.unlink(worker.life.diary)
        return ending

    # The log ------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Hold what was promised up to now against what is there."""
        oldest = min((worker.started for worker in self._crew.working), default=time.monotonic())
        self.read_diaries()
        with logbroker.open(self._data) as broker:
            self._read_logs(broker)
            self.written.compare()
            self._newest.check(_compacted(broker))
            self.handed_out.compare()
            self._look_at_groups(broker)
            self._look_at_made(broker)
        for queue in self.queues.values():
            queue.forget(oldest)

    def _read_logs(self, broker: Broker) -> None:
        ends = {
            (topic, partition.partition): partition.last_stable_offset
            for topic in READ_TOPICS
            for partition in broker.topic(topic).partitions
        }
        deadline = time.monotonic() + LONGEST_S
        with broker.consumer(READ_TOPICS, group="witness", delivery="manual") as consumer:
            while True:
                for record in consumer.poll(10_000, 0):
                    self._found(record)
                position = consumer.position()
                if all(position.get(place, 0) >= end for place, end in ends.items()):
                    break
                assert time.monotonic() < deadline, f"cannot be read: {position} of {ends}"
            consumer.commit()

    def _found(self, record: Record) -> None:
        topic, partition, offset = record.topic, record.partition, record.offset
        if topic in ("t", "jobs"):
            name, number = read_value(record.value)
            self.written.found((topic, partition, name), number, offset)
            return
        source_partition, source_offset = map(int, (record.value or b"").split(b":"))
        if topic == "out":
            self.derived.found(source_partition, source_offset)
        else:
            self.pairs.found(topic, source_partition, source_offset)

    def _look_at_groups(self, broker: Broker) -> None:
        for group in GROUPS:
            for place in broker.group(group).offsets:
                committed = place.committed_offset or 0
                assert committed <= place.high_watermark, f"{group}: {place}"
                key = (group, place.topic, place.partition)
                assert committed >= self._committed.get(key, 0), (
                    f"{group}: {place}, was {self._committed[key]}"
                )
                self._committed[key] = committed

    def _look_at_made(self, broker: Broker) -> None:
        there = [topic for topic in broker.topics() if topic.startswith("made-")]
        working = [worker.life.number for worker in self._crew.working]
        self.read_diaries()
        for topic, count in self.made.compare(there, working).items():
            if count is not None:
                found = broker.topic(topic).partitions[0].high_watermark
                assert found == count, f"{topic} holds {found} records, {count} were written"
            broker.delete_topic(topic)
            self.made.forget(topic)

    # The end ------------------------------------------------------------------------------------------

    def lag(self) -> int:
        """How much is left to do for those who read what the writers wrote."""
        self.read_diaries()
        with logbroker.open(self._data) as broker:
            queues = sum(broker.subscription(queue).lag for queue in QUEUES.values())
            return queues + sum(broker.group(group).lag for group in ("readers", "enrichers"))

    def check_complete(self) -> None:
        """Everybody is dead and everything was done: what was promised is what is there, and nothing else is."""
        self.look()
        ends = {partition: self.written.end("jobs", partition) for partition in range(PARTITIONS["jobs"])}
        for queue in self.queues.values():
            queue.check_complete(ends)
        self.pairs.check_complete(ends)
        made = {partition: self.derived.end(partition) for partition in ends}
        assert made == ends, f"derived up to {made}, written up to {ends}"
        self.handed_out.check_complete(
            {partition: self.written.end("t", partition) for partition in range(PARTITIONS["t"])}
        )
        self.check_directory()

    def inspect(self, *, notes: bool) -> None:
        """Nobody has it open: the inspector finds nothing wrong; of *notes*, only what recovery took away and kept."""
        findings = [
            finding
            for finding in verify(find(str(self._data)))
            if finding.severity is not Severity.NOTE or (notes and finding.advice != ADVICE_SIDE_FILE)
        ]
        assert not findings, findings

    def check_directory(self) -> None:
        """Nobody has it open, and it was closed cleanly: nothing is left over, no lock and no slot is held."""
        self.inspect(notes=True)
        with logbroker.open(self._data) as broker:
            directory = DataDirectory.open(str(self._data))
            slots = directory.view.lmdb.readers().splitlines()[1:]  # behind the heading
            known = {
                f"{topic.name}-{number}"
                for topic in directory.catalog.live()
                for number in range(topic.partitions)
            }
            directory.close()
            assert not [topic for topic in broker.topics() if topic.startswith("made-")]
        assert not slots, f"reader slots in use: {slots}"
        folders = {path.name for path in (self._data / "logs").iterdir() if path.is_dir()}
        assert folders == known | {"__journal-0"}, folders ^ known
        processes = os.listdir(self._data / "view" / "processes")
        assert not processes, f"entries of processes that are gone: {processes}"


def _compacted(broker: Broker) -> list[tuple[bytes, int, bool]]:
    found = []
    with broker.consumer("c") as consumer:
        while records := consumer.poll(10_000, 0):
            for record in records:
                number = int(dict(record.headers)["number"] or b"")
                assert record.value in (None, b"%d" % number), record
                found.append((record.key or b"", number, record.value is None))
    return found
