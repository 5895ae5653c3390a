"""Whether a directory that was recovered after a power cut keeps what was promised (``promises``).

Findings, not exceptions: one cut may break several promises, and the checker's own test wants to see them all.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import logbroker
from logbroker_storage.files import OsFiles
from logbroker_tools.findings import Code, Severity
from logbroker_tools.layout import find
from logbroker_tools.verify import verify
from logbroker_tools.verify.batches import verify_batches

from .load import LAZY, PARTITIONS, TIMEOUT_S, value_of
from .promises import Place, Promises

IDENTIFIED_CHECKED = 5
# Made again from the log where they are missing or wrong: after a power cut they may be either.
DERIVED = {
    Code.MISSING_INDEX,
    Code.BAD_OFFSET_INDEX,
    Code.BAD_TIME_INDEX,
    Code.BAD_ABORTED_INDEX,
    Code.BAD_SNAPSHOT,
}


@dataclass(frozen=True)
class Broken:
    """A promise that was not kept."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass
class Outcome:
    """What a check found, and what is known now that nobody knew before."""

    broken: list[Broken] = field(default_factory=list)
    lost: int = 0
    """Acknowledged records that are gone, of topics that do not wait for the disk: the cut did take something."""
    settled: dict[Place, str] = field(default_factory=dict)
    """What was about to be settled, and was."""
    produced: dict[tuple[str, int, str], int] = field(default_factory=dict)
    """The last sequence that is there, where more had been acknowledged of such topics."""


def damage_below_recovery_points(data: str) -> Iterator[Broken]:
    """What the inspector says of the batches of a directory that nobody has recovered yet."""
    for partition in find(data).partitions:
        point = partition.recovery_point or 0
        for finding in verify_batches(partition, OsFiles()):
            is_error = finding.severity is Severity.ERROR and finding.code not in DERIVED
            if is_error and (finding.start_offset or 0) < point:
                yield Broken("damage", f"{partition.name}, below the recovery point {point}: {finding}")


def errors_of(data: str) -> Iterator[Broken]:
    """What the inspector calls an error in a directory that was recovered, and is closed.

    Snapshots may be torn, of which recovery took a sound one: they are not synced until something depends on them.
    """
    for finding in verify(find(data)):
        if finding.severity is Severity.ERROR and finding.code is not Code.BAD_SNAPSHOT:
            yield Broken("verify", str(finding))


def check(data: str, promises: Promises) -> Outcome:
    """Open the directory, as the first process after the power came back, and compare."""
    outcome = Outcome()
    with logbroker.open(data) as broker:
        records = {topic: _records(broker, topic) for topic in ("orders", "copies", "jobs", "prices", *LAZY)}
        outcome.broken += _topics(broker, promises)
        for topic in ("orders", *LAZY):
            outcome.broken += _sequences(topic, records[topic])
        outcome.broken += _acknowledged(records, promises, outcome)
        outcome.broken += _seen(records["orders"], promises)
        outcome.broken += _groups(broker, promises)
        outcome.broken += _copies(broker, records["copies"], promises)
        outcome.broken += _prices(records["prices"], promises)
        outcome.broken += _identified(broker, records["jobs"], promises)
        outcome.broken += _queue(broker, promises, outcome)
    return outcome


Log = dict[int, bytes]  # offset to value
Logs = dict[int, Log]  # of each partition


def _records(broker: logbroker.Broker, topic: str) -> Logs:
    """Every committed record of a topic, and nothing but what can be read without an error."""
    found: Logs = {partition.partition: {} for partition in broker.topic(topic).partitions}
    with broker.consumer(topic) as consumer:
        ends = {
            partition.partition: partition.last_stable_offset for partition in broker.topic(topic).partitions
        }
        deadline = time.monotonic() + TIMEOUT_S
        while any(consumer.position()[partition] < end for partition, end in ends.items()):
            for record in consumer.poll(10_000, 0.1):
                found[record.partition][record.offset] = record.value or b""
            assert time.monotonic() < deadline, (
                f"{topic} cannot be read to its end: {consumer.position()}, {ends}"
            )
    return found


def _topics(broker: logbroker.Broker, promises: Promises) -> Iterator[Broken]:
    topics = set(broker.topics())
    for name in promises.topics - topics:
        yield Broken("topic", f"{name} was created, and is not there")
    for name in promises.deleted & topics:
        yield Broken("topic", f"{name} was deleted, and is there again")
    start = broker.topic("trimmed").partitions[0].log_start_offset
    if start < promises.trimmed:
        yield Broken(
            "trimmed", f"records below {promises.trimmed} were deleted, and the log begins at {start}"
        )
    for (topic, number), offset in promises.synced.items():
        end = broker.topic(topic).partitions[number].log_end_offset
        if end < offset:
            yield Broken("synced", f"{topic}-{number} was synced up to {offset}, and ends at {end}")


def _sequences(topic: str, logs: Logs) -> Iterator[Broken]:
    """Of each producer everything from its first record on, in order, once, and as it was sent."""
    for partition, log in logs.items():
        following: Counter[str] = Counter()
        if list(log) != list(range(len(log))):
            yield Broken(
                "offsets", f"{topic}-{partition} has gaps: {len(log)} records up to {max(log, default=-1)}"
            )
        for offset, value in log.items():
            name, sequence, _ = value.decode().split(":")
            if int(sequence) != following[name] or value != value_of(name, int(sequence)):
                yield Broken(
                    "order", f"{topic}-{partition}@{offset}: {value!r}, not {name}:{following[name]}"
                )
                break
            following[name] += 1


def _acknowledged(records: dict[str, Logs], promises: Promises, outcome: Outcome) -> Iterator[Broken]:
    for (topic, partition, name), sequence in promises.produced.items():
        own = sum(value.startswith(name.encode() + b":") for value in records[topic][partition].values())
        missing = sequence + 1 - own
        if missing <= 0:
            continue
        if topic in LAZY:
            outcome.lost += missing
            outcome.produced[topic, partition, name] = own - 1
        else:
            yield Broken(
                "record", f"{name} of {topic}-{partition}: {sequence + 1} were acknowledged, {own} are there"
            )


def _seen(orders: Logs, promises: Promises) -> Iterator[Broken]:
    for (partition, offset), value in promises.seen.items():
        found = orders[partition].get(offset)
        if found != value:
            yield Broken(
                "seen", f"orders-{partition}@{offset} was given to a consumer: {value!r}; now {found!r}"
            )


def _committed(broker: logbroker.Broker, group: str) -> dict[int, int]:
    if group not in broker.groups():
        return {}
    offsets = broker.group(group).offsets
    return {one.partition: one.committed_offset for one in offsets if one.committed_offset is not None}


def _groups(broker: logbroker.Broker, promises: Promises) -> Iterator[Broken]:
    ends = {partition.partition: partition.high_watermark for partition in broker.topic("orders").partitions}
    for group, promised in (("readers", promises.committed), ("copier", promises.copied)):
        committed = _committed(broker, group)
        for partition, offset in promised.items():
            if committed.get(partition, 0) < offset:
                yield Broken(
                    "commit", f"{group} had committed {offset} of orders-{partition}; now {committed}"
                )
        for partition, offset in committed.items():
            if offset > ends[partition]:
                yield Broken(
                    "commit", f"{group} is at {offset} of orders-{partition}, which ends at {ends[partition]}"
                )


def _copies(broker: logbroker.Broker, copies: Logs, promises: Promises) -> Iterator[Broken]:
    """Each record below the committed offset was copied once, by whole transactions, which counted them."""
    sizes: dict[int, int] = {}
    found: Counter[int] = Counter()
    sources: dict[int, list[int]] = defaultdict(list)
    for log in copies.values():
        for value in log.values():
            partition, offset, transaction, size = map(int, value.split(b":"))
            sources[partition].append(offset)
            found[transaction] += 1
            sizes[transaction] = size
    for transaction, size in sizes.items():
        if found[transaction] != size:
            yield Broken(
                "transaction",
                f"{found[transaction]} of {size} records of transaction {transaction} are there",
            )
    committed = _committed(broker, "copier")
    for partition in range(PARTITIONS):
        offsets = sorted(sources[partition])
        if offsets != list(range(committed.get(partition, 0))):
            odd = Counter(offsets)
            odd.subtract(range(committed.get(partition, 0)))
            wrong = {offset: count for offset, count in odd.items() if count}
            yield Broken(
                "copied", f"up to {committed.get(partition, 0)} of orders-{partition}, but for {wrong}"
            )
    current = broker.transaction("copier")
    count = int(current.state.get(b"count", b"0") or b"0")
    current.abort()
    if count != found.total():
        yield Broken("state", f"the state counts {count} copies, {found.total()} are there")


def _prices(prices: Logs, promises: Promises) -> Iterator[Broken]:
    newest: dict[int, int] = {}
    for value in prices[0].values():
        key = int(value) % 1_000_000 % 20
        if int(value) <= newest.get(key, -1):
            yield Broken("compacted", f"{int(value)} stands behind {newest[key]}")
        newest[key] = int(value)
    for key, number in promises.priced.items():
        if newest.get(key, -1) < number:
            yield Broken("compacted", f"the newest price {key} was {number}, now {newest.get(key)}")


def _identified(broker: logbroker.Broker, jobs: Logs, promises: Promises) -> Iterator[Broken]:
    """One record of each id, where it was acknowledged; and who sends one again is told of it."""
    copies = Counter(value for log in jobs.values() for value in log.values())
    for value, count in copies.items():
        if count > 1:
            yield Broken("identified", f"there are {count} records of the id {value!r}")
    for number, (partition, offset) in promises.identified.items():
        if jobs[partition].get(offset) != b"%d" % number:
            found = jobs[partition].get(offset)
            yield Broken("identified", f"id {number} was at jobs-{partition}@{offset}; now {found!r}")
            return
    with broker.producer() as producer:
        for number, place in list(promises.identified.items())[-IDENTIFIED_CHECKED:]:
            receipt = producer.send("jobs", b"%d" % number, message_id=f"id-{number}").result(TIMEOUT_S)
            if not receipt.duplicate or (receipt.partition, receipt.offset) != place:
                yield Broken("identified", f"id {number}, at {place}, was taken again: {receipt}")


def _queue(broker: logbroker.Broker, promises: Promises, outcome: Outcome) -> Iterator[Broken]:
    """What was settled does not come again, everything else does; and each dead letter is there once."""
    places = {
        (partition.partition, offset)
        for partition in broker.topic("jobs").partitions
        for offset in range(partition.log_end_offset)
    }
    delivered: Counter[Place] = Counter()
    with broker.queue(subscription="workers") as queue:
        must_come = places - promises.settled.keys() - promises.settling.keys()
        deadline = time.monotonic() + TIMEOUT_S
        while batch := queue.receive_many(10_000, 0.02 if must_come <= delivered.keys() else 1.0):
            delivered.update((message.partition, message.offset) for message in batch)
            assert time.monotonic() < deadline, "the queue does not become empty"
    # Behind the deliveries: a consumer buries what was rejected when the power went.
    letters = Counter(
        (letter.death.partition, letter.death.offset) for letter in broker.dead_letters("workers")
    )
    for place, count in delivered.items():
        if count > 1:
            yield Broken("queue", f"{place} was delivered {count} times at once")
    for place in must_come - delivered.keys():
        yield Broken("queue", f"{place} was never settled, and is not delivered")
    for place in promises.settled.keys() & delivered.keys():
        yield Broken("queue", f"{place} was settled ({promises.settled[place]}), and is delivered again")
    for place, how in promises.settled.items():
        if letters[place] != (how == "reject"):
            yield Broken(
                "dead letter", f"{place} was settled ({how}), and there are {letters[place]} letters of it"
            )
    for place, how in promises.settling.items():
        is_done = place in places and place not in delivered
        if letters[place] != (is_done and how == "reject"):
            text = f"{place} was about to be settled ({how}): delivered {delivered[place]}, letters {letters[place]}"
            yield Broken("dead letter", text)
        if is_done:
            outcome.settled[place] = how
