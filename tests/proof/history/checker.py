"""From a history to what is wrong with it. Pure: operations and final reads in, findings out.

The clients' operations (``operations``) are held against the log as it was read when all was over: every record
ever appended, with its offset. Nothing is deleted in a round, values are unique, and whatever a reader can see is on
the disk, so all of these follow from the contract, and none depends on when things happened but where it says so:

    kind                     is found where
    LOST_WRITE               a send was acknowledged, or its transaction's commit was, or any reader got its record, and
                             the log does not hold it
    DUPLICATE                a value of an idempotent producer lies at two offsets; or two committed records were made
                             from one source
    INVENTED                 a value in the log, or in anybody's hands, that no client sent to that place
    INCONSISTENT_OFFSETS     an acknowledgement, a poll or a final read names an offset where the log holds something
                             else
    ABORTED_READ             a read_committed reader got a record of a transaction whose commit nobody asked for, or was
                             refused; or anybody got one that was refused
    EARLY_READ               … got it, by the clock, before the commit was asked for
    TORN_TRANSACTION         of a transaction's acknowledged records only some are visible in the end
    REORDERED                two acknowledged sends of an idempotent producer to one place lie in the other order; or of
                             any two clients, one that was sent after the other was acknowledged (by the clock)
    NON_MONOTONIC_POLL       within one assignment an offset came that is not above the last
    SKIPPED_POLL             within one assignment, from the offset that it began at, a visible record was passed by; or
                             a group committed an offset above a visible record that none of its members got
    UNSEEN                   two final reads of the same isolation differ in which records they hold
    WRONG_COMMITTED_OFFSET   a group was told an offset that no commit explains: every commit of it was, by the clock,
                             replaced by an acknowledged one before the group asked

A send or commit whose outcome is unknown may take effect at any later time: it explains what is there, and demands
nothing. Such sends are not held to an order, for a network may deliver an old request after a client gave up on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from .findings import Finding, Kind
from .offset_checks import check_committed_offsets
from .operations import FinalRead, History, Isolation, Outcome, Place, Polled, Send
from .poll_checks import check_polls


class Log:
    """The final log by offset and by value, and what of it is visible to whom."""

    def __init__(self, final_reads: Sequence[FinalRead]) -> None:
        """The first of each isolation among *final_reads* is what the others are held against."""
        self._reads = {read.isolation: read.records for read in reversed(final_reads)}
        stored = self._reads[Isolation.UNCOMMITTED]
        self.value_at = {place: dict(records) for place, records in stored.items()}
        self.offsets_of: dict[str, list[tuple[Place, int]]] = defaultdict(list)
        for place, records in stored.items():
            for offset, value in records:
                self.offsets_of[value].append((place, offset))
        self.committed_values = {
            value for records in self._reads[Isolation.COMMITTED].values() for _, value in records
        }

    def visible(self, isolation: Isolation, place: Place) -> Sequence[tuple[int, str]]:
        """The records of *place* that a reader gets, by offset."""
        return self._reads[isolation].get(place, ())


def check(history: History, final_reads: Sequence[FinalRead]) -> list[Finding]:
    """Everything that is wrong; nothing when all is well."""
    log = Log(final_reads)
    findings = [
        *_check_sends(history, log),
        *_check_stored(history, log),
        *_check_transactions(history, log),
        *_check_order_of_clients(history, log),
        *_check_order_in_time(history),
        *_check_seen(history, log),
        *_check_final_reads(history, log, final_reads),
        *check_polls(history, log.visible),
        *check_committed_offsets(history),
    ]
    return list(dict.fromkeys(findings))


# What was sent is there -----------------------------------------------------------------------------------


def _check_sends(history: History, log: Log) -> Iterator[Finding]:
    for send in history.sends.values():
        found = log.offsets_of.get(send.value, [])
        if send.outcome is Outcome.OK and not found:
            yield Finding(Kind.LOST_WRITE, f"acknowledged, and not in the log: {send}")
        if send.outcome is Outcome.FAILED and found:
            yield Finding(Kind.ABORTED_READ, f"refused, and at {found}: {send}")
        if send.offset is not None and found and (send.place, send.offset) not in found:
            yield Finding(Kind.INCONSISTENT_OFFSETS, f"acknowledged at another offset than {found}: {send}")


def _check_stored(history: History, log: Log) -> Iterator[Finding]:
    copies: dict[tuple[Place, int], str] = {}
    for value, found in log.offsets_of.items():
        send = history.sends.get(value)
        if len(found) > 1 and (send is None or send.is_once):
            yield Finding(Kind.DUPLICATE, f"{value!r} is at {found}: {send}")
        if send is None or any(place != send.place for place, _ in found):
            yield Finding(Kind.INVENTED, f"{value!r} is at {found}, and was sent as {send}")
        elif send.source is not None and value in log.committed_values:
            other = copies.setdefault(send.source, value)
            if other != value:
                yield Finding(
                    Kind.DUPLICATE, f"{send.source} was copied twice: {history.sends[other]} and {send}"
                )


# Transactions ---------------------------------------------------------------------------------------------


def _check_transactions(history: History, log: Log) -> Iterator[Finding]:
    sends: dict[str, list[Send]] = defaultdict(list)
    for send in history.sends.values():
        if send.transaction is not None and send.outcome is not Outcome.FAILED:
            sends[send.transaction].append(send)
    for name, sent in sends.items():
        transaction = history.transactions[name]
        there = [send for send in sent if send.value in log.committed_values]
        missing = [send for send in sent if send.value not in log.committed_values]
        if transaction.is_committed and missing:
            yield Finding(Kind.LOST_WRITE, f"committed by {transaction}, and not visible: {missing}")
        elif there and not transaction.may_be_committed:
            yield Finding(Kind.ABORTED_READ, f"not committed by {transaction}, and visible: {there}")
        elif there and missing:
            yield Finding(Kind.TORN_TRANSACTION, f"{transaction}: visible are {there}, and not {missing}")


# Order ----------------------------------------------------------------------------------------------------


def _check_order_of_clients(history: History, log: Log) -> Iterator[Finding]:
    """A client's records of one place lie in the order of its sends."""
    lanes: dict[tuple[str, Place], list[tuple[int, int]]] = defaultdict(list)
    for send in history.sends.values():
        if send.outcome is Outcome.OK and send.is_once:
            lanes[send.client, send.place] += [
                (send.number, offset)
                for place, offset in log.offsets_of.get(send.value, [])
                if place == send.place
            ]
    for (client, place), sent in lanes.items():
        for (number, offset), (later_number, later_offset) in pairwise(sorted(sent)):
            if number != later_number and offset > later_offset:
                yield Finding(
                    Kind.REORDERED,
                    f"{client} sent {number} before {later_number} to {place}: they are at {offset}, {later_offset}",
                )


def _check_order_in_time(history: History) -> Iterator[Finding]:
    """What is sent after something was acknowledged lies behind it, whoever sent them."""
    moments: dict[Place, list[tuple[int, bool, int, str]]] = defaultdict(list)
    for send in history.sends.values():
        if send.outcome is Outcome.OK and send.offset is not None:
            moments[send.place] += [
                (send.begun_ns, False, send.offset, send.value),
                (send.ended_ns, True, send.offset, send.value),
            ]
    for place, events in moments.items():
        highest, holder = -1, ""
        for _, is_end, offset, value in sorted(events):
            if is_end:
                highest, holder = max((highest, holder), (offset, value))
            elif offset < highest:
                yield Finding(
                    Kind.REORDERED,
                    f"in {place} {value!r} at {offset} was sent after {holder!r} at {highest} was acknowledged",
                )


# What readers saw -----------------------------------------------------------------------------------------


def _check_seen(history: History, log: Log) -> Iterator[Finding]:
    for reader in history.readers:
        for step in reader.steps:
            if isinstance(step, Polled):
                for place, records in step.records.items():
                    for offset, value in records:
                        yield from _check_record(history, log, reader.client, place, offset, value)
                        if reader.isolation is Isolation.COMMITTED:
                            yield from _check_is_committed(history, reader.client, value, step.at_ns)


def _check_record(
    history: History, log: Log, who: str, place: Place, offset: int, value: str
) -> Iterator[Finding]:
    stored = log.value_at.get(place, {}).get(offset)
    if stored == value:
        return  # what is wrong with it is found where the log is looked at
    what = f"{who} read {value!r} at {place} {offset}, where the log has {stored!r}"
    if value not in history.sends:
        yield Finding(Kind.INVENTED, what)
    elif value not in log.offsets_of:
        yield Finding(Kind.LOST_WRITE, f"{what}; it is nowhere")
    else:
        yield Finding(Kind.INCONSISTENT_OFFSETS, f"{what}; it is at {log.offsets_of[value]}")


def _check_is_committed(history: History, who: str, value: str, at_ns: int) -> Iterator[Finding]:
    send = history.sends.get(value)
    if send is None or send.transaction is None:
        return
    transaction = history.transactions[send.transaction]
    if not transaction.may_be_committed:
        yield Finding(Kind.ABORTED_READ, f"{who} read {send} of {transaction}")
    elif at_ns < transaction.begun_ns:
        yield Finding(Kind.EARLY_READ, f"{who} read {send} at {at_ns}, of {transaction}")


def _check_final_reads(history: History, log: Log, final_reads: Sequence[FinalRead]) -> Iterator[Finding]:
    for read in final_reads:
        for place in sorted(log.value_at.keys() | read.records.keys()):
            records = read.records.get(place, ())
            for offset, value in records:
                yield from _check_record(history, log, read.reader, place, offset, value)
            yield from _check_order_of_read(read.reader, place, records)
            yield from _check_same(read, place, dict(log.visible(read.isolation, place)), dict(records))


def _check_order_of_read(who: str, place: Place, records: Sequence[tuple[int, str]]) -> Iterator[Finding]:
    for (offset, _), (following, _) in pairwise(records):
        if following <= offset:
            yield Finding(Kind.NON_MONOTONIC_POLL, f"{who} read {place} {following} after {offset}")


def _check_same(
    read: FinalRead, place: Place, expected: Mapping[int, str], got: Mapping[int, str]
) -> Iterator[Finding]:
    differing = sorted(expected.items() ^ got.items())
    if differing:
        missing = [record for record in differing if record[0] in expected]
        yield Finding(
            Kind.UNSEEN,
            f"{read.reader} ({read.isolation.value}) reads {place} differently: {len(missing)} of {len(expected)} "
            f"are missing or other, the first at {differing[:3]}",
        )
