"""Retention: which segments at the front of a log may go, and why.

    reason         a sealed segment goes when
    LOG_START      every record lies below the log start offset (someone deleted them)
    RETENTION_MS   its newest record is older than retention.ms
    TTL            its newest record is older than message.ttl.ms, so that nobody is given any of it
    SIZE           the log without it would still be at least retention.bytes large
    CONSUMED       retention.policy=consumed and every subscribed group has committed past it

Only a prefix of the log is ever removed, only up to the last stable offset, and never the active segment: when
that one is due by time, ``rolls_active`` says so, and the caller rolls it and plans again. A compacted
topic (``cleanup.policy=compact``) keeps its segments but for LOG_START and TTL.

Pure: values in, a plan out.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from .log_config import LogConfig, RetentionPolicy


class SegmentInfo(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What retention and compaction must know of a segment: offsets [base_offset, next_offset)."""

    base_offset: int
    next_offset: int
    size_bytes: int
    max_timestamp_ms: int  # -1 when no batch has a timestamp
    is_active: bool = False


class RemovalReason(enum.Enum):
    """Why a segment goes; the first that applies, in this order."""

    LOG_START = "below the log start offset"
    RETENTION_MS = "older than retention.ms"
    TTL = "older than message.ttl.ms"
    SIZE = "the log is larger than retention.bytes"
    CONSUMED = "committed by every subscribed group"


class Removal(msgspec.Struct, frozen=True, gc=False):
    """One segment to remove, and the reason to log."""

    segment: SegmentInfo
    reason: RemovalReason


class RetentionPlan(msgspec.Struct, frozen=True):
    """Segments to remove, oldest first, and whether the active segment is due as well."""

    removals: list[Removal]
    rolls_active: bool


def plan(
    segments: Sequence[SegmentInfo],
    *,
    config: LogConfig,
    now_ms: int,
    log_start_offset: int,
    stable_offset: int,
    consumed_offset: int | None = None,
) -> RetentionPlan:
    """What to remove from a log of *segments* (oldest first, the active one last).

    Args:
        consumed_offset: the lowest offset that a subscribed group has committed; None without groups,
            and then nothing counts as consumed.
    """
    reasons: dict[int, RemovalReason] = {}

    def note(found: Sequence[SegmentInfo], reason: RemovalReason) -> None:
        for segment in found:
            reasons.setdefault(segment.base_offset, reason)

    note(below_start(segments, log_start_offset=log_start_offset), RemovalReason.LOG_START)
    if config.cleanup_policy.deletes:
        note(expired(segments, retention_ms=config.retention_ms, now_ms=now_ms), RemovalReason.RETENTION_MS)
    note(expired(segments, retention_ms=config.message_ttl_ms, now_ms=now_ms), RemovalReason.TTL)
    if config.cleanup_policy.deletes:
        note(oversized(segments, retention_bytes=config.retention_bytes), RemovalReason.SIZE)
        if config.retention_policy is RetentionPolicy.CONSUMED and consumed_offset is not None:
            note(consumed(segments, committed_offset=consumed_offset), RemovalReason.CONSUMED)
    # Each rule gives a prefix of the sealed segments, so what any of them gave is one too.
    removals = [
        Removal(segment, reasons[segment.base_offset])
        for segment in segments
        if segment.base_offset in reasons and segment.next_offset <= stable_offset
    ]
    limits_ms = [config.message_ttl_ms]
    if config.cleanup_policy.deletes:
        limits_ms.append(config.retention_ms)
    rolls = any(active_is_expired(segments, retention_ms=limit_ms, now_ms=now_ms) for limit_ms in limits_ms)
    return RetentionPlan(removals, rolls)


def below_start(segments: Sequence[SegmentInfo], *, log_start_offset: int) -> list[SegmentInfo]:
    """Sealed segments, oldest first, that hold nothing at or above *log_start_offset*."""
    return [
        segment for segment in segments if not segment.is_active and segment.next_offset <= log_start_offset
    ]


def expired(segments: Sequence[SegmentInfo], *, retention_ms: int, now_ms: int) -> list[SegmentInfo]:
    """Sealed segments, oldest first, whose newest record is older than *retention_ms* (-1: none are).

    Ends at the first that is not: a segment behind a younger one stays. One without any timestamp is as
    old as the next that has one.
    """
    found: list[SegmentInfo] = []
    undated: list[SegmentInfo] = []
    if retention_ms < 0:
        return found
    for segment in segments:
        if segment.max_timestamp_ms < 0:
            undated.append(segment)
            continue
        if now_ms - segment.max_timestamp_ms <= retention_ms:
            break
        found += [*undated, segment]
        undated.clear()
    return [segment for segment in found if not segment.is_active]


def active_is_expired(segments: Sequence[SegmentInfo], *, retention_ms: int, now_ms: int) -> bool:
    """Whether the active segment is due too, as soon as it is sealed: it has records, all too old."""
    if retention_ms < 0 or not segments or not segments[-1].is_active:
        return False
    active = segments[-1]
    is_old = active.max_timestamp_ms >= 0 and now_ms - active.max_timestamp_ms > retention_ms
    sealed = segments[:-1]
    return is_old and len(expired(segments, retention_ms=retention_ms, now_ms=now_ms)) == len(sealed)


def oversized(segments: Sequence[SegmentInfo], *, retention_bytes: int) -> list[SegmentInfo]:
    """Sealed segments, oldest first, without which *retention_bytes* (-1: unlimited) would still be left."""
    found: list[SegmentInfo] = []
    if retention_bytes < 0:
        return found
    left_bytes = sum(segment.size_bytes for segment in segments)
    for segment in segments:
        left_bytes -= segment.size_bytes
        if segment.is_active or left_bytes < retention_bytes:
            break
        found.append(segment)
    return found


def consumed(segments: Sequence[SegmentInfo], *, committed_offset: int) -> list[SegmentInfo]:
    """Sealed segments, oldest first, of which every record lies below *committed_offset*."""
    return below_start(segments, log_start_offset=committed_offset)
