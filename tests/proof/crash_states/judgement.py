"""Whether what is found of a state keeps the promises that were made by then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from .observation import Observation
from .program import DEAD_LETTERS
from .promises import Batch, End, LogPromise, MessagePromise, Promises, Stage, TopicPromise
from .sight import Record, Seen


def judge(found: Observation, promises: Promises) -> list[str]:
    """Every promise that is broken, in words."""
    broken = list(found.faults)
    evidence: dict[str, list[_Sign]] = {}
    broken += _of_topics(found, promises)
    for topic in _standing(found, promises):
        logs = topic.logs + topic.added
        for number, log in enumerate(logs[: found.sight.topics[topic.name][1]]):
            place = f"{topic.name}-{number}"
            seen = found.sight.logs[topic.name, number]
            broken += [f"{place}: {fault}" for fault in _of_bounds(seen, log)]
            broken += [f"{place}: {fault}" for fault in _of_producers(seen, log)]
            if topic.name != DEAD_LETTERS:
                broken += [f"{place}: {fault}" for fault in _of_records(seen, log, promises, evidence)]
    broken += _of_commits(found, promises, evidence)
    broken += _of_queues(found, promises, evidence)
    broken += _of_transactions(promises, evidence)
    return broken


class _Sign(NamedTuple):
    """Something that shows whether a transaction counts."""

    counts: bool
    what: str


# Topics -------------------------------------------------------------------------------------------------


def _of_topics(found: Observation, promises: Promises) -> Iterator[str]:
    for name in found.sight.topics.keys() - promises.topics.keys():
        yield f"topic {name} was never created"
    for name, versions in promises.topics.items():
        there = found.sight.topics.get(name)
        newest = versions[-1]
        if there is None:
            if newest.created is Stage.KEPT and newest.deleted is None:
                yield f"topic {name} is gone"
            continue
        topic_id, partitions = there
        if newest.deleted is Stage.KEPT:
            yield f"topic {name} was deleted, and is there"
        elif topic_id != newest.topic_id:
            yield f"topic {name} has an id that it was never given: {topic_id.hex()}"
        elif partitions not in (len(newest.logs), len(newest.logs) + len(newest.added)):
            yield f"topic {name} has {partitions} partitions"


def _standing(found: Observation, promises: Promises) -> Iterator[TopicPromise]:
    """The promises of topics that are there."""
    for name, (topic_id, _) in found.sight.topics.items():
        for topic in promises.topics.get(name, ()):
            if topic.topic_id == topic_id:
                yield topic


# Records ------------------------------------------------------------------------------------------------


def _of_bounds(seen: Seen, log: LogPromise) -> Iterator[str]:
    if not seen.log_start_offset <= seen.last_stable_offset <= seen.high_watermark <= seen.log_end_offset:
        yield f"its bounds are in disorder: {seen[:4]}"
    if seen.last_stable_offset != seen.log_end_offset:
        yield f"a transaction is left open, or something is not synced: {seen[:4]}"
    if seen.log_end_offset < log.kept_end:
        yield f"it ends at {seen.log_end_offset}, records below {log.kept_end} were acknowledged"
    if not log.start_kept <= seen.log_start_offset <= max(log.start_kept, log.start_tried):
        yield f"it begins at {seen.log_start_offset}, not in [{log.start_kept}, {log.start_tried}]"


def _of_producers(seen: Seen, log: LogPromise) -> Iterator[str]:
    there = dict(seen.sequences)
    for producer_id, last_sequence in log.sequences.items():
        if there.get(producer_id, -1) < last_sequence:
            yield (
                f"producer {producer_id} was acknowledged up to sequence {last_sequence}, "
                f"and is remembered up to {there.get(producer_id)}"
            )


def _of_records(
    seen: Seen, log: LogPromise, promises: Promises, evidence: dict[str, list[_Sign]]
) -> Iterator[str]:
    there = {record.offset: record for record in seen.records}
    newest = {record.key: record.offset for record in seen.records if record.key is not None}
    end = max(log.kept_end, seen.log_end_offset)
    missing_from: int | None = None
    for batch in log.batches:
        if batch.base_offset is None or batch.end_offset <= seen.log_start_offset:
            continue
        expected = [record for record in batch.records() if record.offset >= seen.log_start_offset]
        present = [record for record in expected if record.offset in there]
        for record in present:
            if there.pop(record.offset) != record:
                yield f"offset {record.offset} holds another record than was sent"
        missing = [record for record in expected if record not in present]
        if log.compacting:
            missing = [record for record in missing if not _superseded(record, batch, newest, promises)]
        if missing and batch.base_offset < log.kept_end:
            yield f"offsets {_offsets(missing)} were acknowledged, and are gone"
        elif missing and present:
            yield f"half a batch: of {_offsets(expected)} there are {_offsets(present)}"
        elif missing and missing_from is None:
            missing_from = batch.base_offset
        elif present and missing_from is not None:
            yield f"offsets {_offsets(present)} are there, those from {missing_from} on are not"
        if batch.transaction is None:
            hidden = [record for record in present if record.offset not in seen.committed]
            if hidden:
                yield f"offsets {_offsets(hidden)} are of no transaction, and not to be seen"
        elif present or batch.base_offset < end:
            counts = any(record.offset in seen.committed for record in present)
            if counts or not log.compacting:
                sign = _Sign(counts, f"offset {batch.base_offset}")
                evidence.setdefault(batch.transaction, []).append(sign)
        else:
            evidence.setdefault(batch.transaction, []).append(_Sign(False, f"offset {batch.base_offset}"))
    if there:
        yield f"offsets {_offsets(list(there.values()))} were never written"


def _superseded(record: Record, batch: Batch, newest: dict[bytes, int], promises: Promises) -> bool:
    if batch.transaction is not None and promises.transactions[batch.transaction] is not End.COMMITTED:
        return True
    return record.key is not None and newest.get(record.key, -1) > record.offset


def _offsets(records: list[Record]) -> list[int]:
    return [record.offset for record in records]


# Groups -------------------------------------------------------------------------------------------------


def _of_commits(found: Observation, promises: Promises, evidence: dict[str, list[_Sign]]) -> Iterator[str]:
    for (group, topic, partition), offset in found.sight.commits.items():
        if (group, topic, partition) not in promises.commits:
            yield f"group {group} never committed anything in {topic}-{partition}: {offset}"
        seen = found.sight.logs.get((topic, partition))
        if seen is None:
            yield f"group {group} has committed {offset} in {topic}-{partition}, which is not there"
        elif offset > seen.log_end_offset:
            yield f"group {group} has committed {offset}, {topic}-{partition} ends at {seen.log_end_offset}"
    for key, commit in promises.commits.items():
        offset_or_none = found.sight.commits.get(key)
        if promises.topic(key[1]).deleted is not None:
            continue
        allowed = {commit.kept, *commit.tried}
        pending = Counter(commit.by_transaction.values())
        for label, offset in commit.by_transaction.items():
            if offset not in allowed and pending[offset] == 1:
                sign = _Sign(offset_or_none == offset, f"commit of {key}")
                evidence.setdefault(label, []).append(sign)
        allowed |= pending.keys()
        if offset_or_none not in allowed:
            yield f"{key} is committed at {offset_or_none}, and not at one of {allowed}"


# Queues -------------------------------------------------------------------------------------------------


def _of_queues(found: Observation, promises: Promises, evidence: dict[str, list[_Sign]]) -> Iterator[str]:
    for name, topic in promises.queues.items():
        if name not in found.delivered:
            yield f"subscription {name} is gone"
            continue
        handed_out = found.delivered[name]
        letters = found.letters.get(name, [])
        for number in range(found.sight.topics[topic][1]):
            seen = found.sight.logs[topic, number]
            for record in seen.records:
                if record.offset not in seen.committed:
                    continue
                promise = promises.messages.get((name, topic, number, record.offset), MessagePromise())
                times = handed_out.count((number, record.offset)), letters.count(record.value)
                fault = _of_message(promise, times, promises, evidence)
                if fault:
                    yield f"{name}: message {number}@{record.offset} {fault}"
            known = {(number, offset) for offset in seen.committed}
            for place in handed_out:
                if place[0] == number and place not in known:
                    yield f"{name}: {place} was handed out, and is not there"


def _of_message(
    promise: MessagePromise,
    times: tuple[int, int],
    promises: Promises,
    evidence: dict[str, list[_Sign]],
) -> str:
    """What is wrong with a message that was handed out, and became a dead letter, so many *times*."""
    ends = {label: promises.transactions[label] for label in promise.transactions}
    allowed = {(1, 0)}
    if promise.accepted is Stage.TRIED:
        allowed.add((0, 0))
    if promise.rejected is Stage.TRIED:
        allowed.add((0, 1))
    if promise.accepted is Stage.KEPT or End.COMMITTED in ends.values():
        allowed = {(0, 0)}
    if promise.rejected is Stage.KEPT:
        allowed = {(0, 1)}
    for label, end in ends.items():
        if end is End.COMMIT_TRIED:
            allowed.add((0, 0))
            evidence.setdefault(label, []).append(_Sign(times == (0, 0), "a message that it accepts"))
    if times in allowed:
        return ""
    return f"was handed out {times[0]} times and is {times[1]} dead letters, after {promise}"


# Transactions -------------------------------------------------------------------------------------------


def _of_transactions(promises: Promises, evidence: dict[str, list[_Sign]]) -> Iterator[str]:
    for label, signs in evidence.items():
        end = promises.transactions[label]
        counts = [sign for sign in signs if sign.counts]
        if end is End.COMMITTED and len(counts) < len(signs):
            yield f"transaction {label} was committed, and is not whole: {signs}"
        elif end in (End.NONE, End.ABORTED) and counts:
            yield f"transaction {label} is {end.value}, and can be seen: {counts}"
        elif counts and len(counts) < len(signs):
            yield f"transaction {label} is there in part: {signs}"
