"""What a history may show to be wrong: the kinds, and one finding with its evidence."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Kind(enum.Enum):
    """What was broken. Jepsen's names for the same, where it has one, in parentheses."""

    LOST_WRITE = "a record that was acknowledged, committed or read is not in the log (lost-write)"
    DUPLICATE = "a record is in the log twice, or was copied twice by committed transactions (duplicate)"
    INVENTED = "the log holds what nobody sent"
    INCONSISTENT_OFFSETS = (
        "two differ about what is at an offset, or where a record is (inconsistent-offsets)"
    )
    ABORTED_READ = "somebody read what was aborted, or was refused (G1a)"
    EARLY_READ = "a read_committed reader got a record before anybody asked for its commit (G1a)"
    TORN_TRANSACTION = "one record of a transaction counts, and another does not"
    REORDERED = "records are in another order than they were sent in (nonmonotonic-send)"
    NON_MONOTONIC_POLL = (
        "a consumer went back without being told to (int-nonmonotonic-poll, nonmonotonic-poll)"
    )
    SKIPPED_POLL = (
        "a consumer, or a group, went past a record that it should have got (int-poll-skip, poll-skip)"
    )
    UNSEEN = "at the end one reader sees a record, and another that should does not (unseen)"
    WRONG_COMMITTED_OFFSET = "a committed offset is neither the last nor one that may yet have come"


class Finding(NamedTuple):
    kind: Kind
    evidence: str

    def __str__(self) -> str:
        return f"{self.kind.name}: {self.evidence}"
