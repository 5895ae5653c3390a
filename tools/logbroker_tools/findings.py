"""What a check found, as data: how bad, what, where, and what to do. A check never stops at its first finding."""

from __future__ import annotations

import enum

import msgspec


class Severity(enum.Enum):
    """``verify`` exits with 1 when there is an error; a note is for the reader only."""

    ERROR = "error"
    NOTE = "note"


class Code(enum.Enum):
    """The kinds of findings; the name is stable, the text is for people."""

    TRUNCATED = "truncated"
    ZEROS = "zeros"
    BAD_MAGIC = "bad-magic"
    BAD_LENGTH = "bad-length"
    BAD_HEADER = "bad-header"
    BAD_CRC = "bad-crc"
    BAD_OFFSET = "bad-offset"
    BAD_EPOCH = "bad-epoch"
    BAD_RECORDS = "bad-records"
    TOO_LARGE = "too-large"
    BAD_TIMESTAMP = "bad-timestamp"
    MISSING_PARTITION = "missing-partition"
    MISSING_OFFSETS = "missing-offsets"
    OVERLAP = "overlap"
    SEQUENCE_GAP = "sequence-gap"
    BAD_SEQUENCE = "bad-sequence"
    MISSING_INDEX = "missing-index"
    BAD_OFFSET_INDEX = "bad-offset-index"
    BAD_TIME_INDEX = "bad-time-index"
    BAD_ABORTED_INDEX = "bad-aborted-index"
    BAD_SNAPSHOT = "bad-snapshot"
    BAD_CHECKPOINT = "bad-checkpoint"
    BAD_EVENT = "bad-event"
    SIDE_FILE = "side-file"
    UNKNOWN_FILE = "unknown-file"
    UNREADABLE = "unreadable"


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong, or worth knowing.

    Attributes:
        position: the byte in the file at *path* where it begins.
        start_offset: the first offset concerned; the range is half-open.
        end_offset: the first offset behind it that is sound again.
        advice: what to do about it.
    """

    severity: Severity
    code: Code
    path: str
    message: str
    position: int | None = None
    start_offset: int | None = None
    end_offset: int | None = None
    advice: str | None = None
