"""Retention: which segments go, for which reason, and that it is always the front of the log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker_storage import retention
from logbroker_storage.log_config import LogConfig
from logbroker_storage.retention import RemovalReason, RetentionPlan, SegmentInfo

DAY_MS = 86_400_000
NOW_MS = 100 * DAY_MS


def segments(*ages_ms: int, size_bytes: int = 100) -> list[SegmentInfo]:
    """Ten offsets each, the last one active; an age of -1 is a segment without timestamps."""
    return [
        SegmentInfo(
            base_offset=index * 10,
            next_offset=index * 10 + 10,
            size_bytes=size_bytes,
            max_timestamp_ms=NOW_MS - age_ms if age_ms >= 0 else -1,
            is_active=index == len(ages_ms) - 1,
        )
        for index, age_ms in enumerate(ages_ms)
    ]


def plan(log, *, log_start_offset=0, stable_offset=1 << 60, consumed_offset=None, **config) -> RetentionPlan:
    settings = {key.replace("_", "."): value for key, value in config.items()}
    return retention.plan(
        log,
        config=LogConfig.parse({"retention.ms": -1, **settings}),
        now_ms=NOW_MS,
        log_start_offset=log_start_offset,
        stable_offset=stable_offset,
        consumed_offset=consumed_offset,
    )


def removed(found: RetentionPlan) -> list[tuple[int, RemovalReason]]:
    return [(removal.segment.base_offset, removal.reason) for removal in found.removals]


def test_without_limits_nothing_goes():
    assert plan(segments(9 * DAY_MS, 8 * DAY_MS, 0)) == RetentionPlan([], False)


def test_old_segments_go_up_to_the_first_young_one():
    log = segments(9, 8, 3, 9, 0)
    assert removed(plan(log, retention_ms=5)) == [
        (0, RemovalReason.RETENTION_MS),
        (10, RemovalReason.RETENTION_MS),
    ]


def test_a_segment_exactly_as_old_as_the_limit_stays():
    assert plan(segments(5, 0), retention_ms=5).removals == []


def test_a_segment_without_timestamps_goes_with_the_next_that_has_one():
    assert [base for base, _ in removed(plan(segments(9, -1, 8, -1, 0), retention_ms=5))] == [0, 10, 20]


def test_the_active_segment_is_rolled_when_all_of_it_is_too_old():
    found = plan(segments(9, 8), retention_ms=5)
    assert (removed(found), found.rolls_active) == ([(0, RemovalReason.RETENTION_MS)], True)
    assert not plan(segments(3, 8), retention_ms=5).rolls_active
    assert not plan(segments(9, -1), retention_ms=5).rolls_active
    assert plan(segments(8), message_ttl_ms=5).rolls_active


def test_a_log_is_never_cut_below_retention_bytes():
    log = segments(3, 2, 1, 0)
    assert [base for base, _ in removed(plan(log, retention_bytes=200))] == [0, 10]
    assert [base for base, _ in removed(plan(log, retention_bytes=201))] == [0]
    assert [base for base, _ in removed(plan(log, retention_bytes=0))] == [0, 10, 20]
    assert removed(plan(log, retention_bytes=401)) == []


def test_records_below_the_log_start_go_whatever_the_policy():
    found = plan(segments(3, 2, 1, 0), log_start_offset=25, cleanup_policy="compact")
    assert removed(found) == [(0, RemovalReason.LOG_START), (10, RemovalReason.LOG_START)]


def test_a_compacted_topic_keeps_old_segments_but_not_outlived_ones():
    log = segments(9, 8, 3, 0)
    assert removed(plan(log, cleanup_policy="compact", retention_ms=5, retention_bytes=0)) == []
    assert removed(plan(log, cleanup_policy="compact", message_ttl_ms=8)) == [(0, RemovalReason.TTL)]
    assert [base for base, _ in removed(plan(log, cleanup_policy="compact,delete", retention_ms=5))] == [
        0,
        10,
    ]


def test_consumed_segments_go_only_under_that_policy():
    log = segments(3, 2, 1, 0)
    assert removed(plan(log, consumed_offset=29)) == []
    found = plan(log, consumed_offset=29, retention_policy="consumed")
    assert removed(found) == [(0, RemovalReason.CONSUMED), (10, RemovalReason.CONSUMED)]
    assert removed(plan(log, consumed_offset=None, retention_policy="consumed")) == []
    assert len(plan(log, consumed_offset=1000, retention_policy="consumed").removals) == 3


def test_what_no_consumer_may_see_yet_is_not_removed():
    assert [base for base, _ in removed(plan(segments(9, 9, 9, 0), retention_ms=5, stable_offset=25))] == [
        0,
        10,
    ]


@pytest.mark.parametrize("log", [[], segments(0), segments(10**9)])
def test_a_log_without_sealed_segments_loses_none(log):
    assert plan(log, retention_ms=1, retention_bytes=0, log_start_offset=10**6).removals == []


@given(
    st.lists(st.integers(-1, 20), min_size=1, max_size=12),
    st.integers(-1, 20),
    st.integers(-1, 20),
    st.integers(-1, 1500),
    st.integers(0, 130),
    st.integers(0, 130),
    st.integers(0, 130),
)
def test_a_plan_is_always_a_prefix_of_the_sealed_durable_segments(
    ages, age, ttl, size, start, mark, committed
):
    log = segments(*ages)
    found = plan(
        log,
        retention_ms=age,
        message_ttl_ms=ttl,
        retention_bytes=size,
        retention_policy="consumed",
        log_start_offset=start,
        stable_offset=mark,
        consumed_offset=committed,
    )
    gone = [removal.segment for removal in found.removals]
    assert gone == log[: len(gone)]
    assert all(not segment.is_active and segment.next_offset <= mark for segment in gone)
