"""A topic's configuration: what is taken, how it is normalised, and what an error says."""

from __future__ import annotations

import pytest

from logbroker_storage.errors import InvalidConfigError
from logbroker_storage.log_config import (
    KAFKA_ONLY,
    CleanupPolicy,
    Durability,
    LogConfig,
    TimestampType,
    config_keys,
    config_markdown,
)


def test_without_settings_every_key_has_kafkas_default():
    config = LogConfig.parse({})
    assert (config.segment_bytes, config.segment_ms, config.retention_ms) == (
        1 << 30,
        604_800_000,
        604_800_000,
    )
    assert (config.index_interval_bytes, config.max_message_bytes) == (4096, 1_048_588)
    assert config.cleanup_policy is CleanupPolicy.DELETE
    assert config.durability is Durability.FSYNC
    assert config.overrides == {}


@pytest.mark.parametrize("value", ["1000", 1000, 1000.0, " 1000 "])
def test_a_number_may_be_given_as_text_integer_or_whole_float(value):
    assert LogConfig.parse({"retention.ms": value}).retention_ms == 1000


@pytest.mark.parametrize(
    "value", ["", "abc", "1.5", 1.5, True, -2, 1 << 63, "nan", float("inf"), float("nan")]
)
def test_a_number_out_of_range_or_of_another_type_is_refused_with_what_is_allowed(value):
    with pytest.raises(
        InvalidConfigError, match=r"retention\.ms.*takes an integer: -1 \(unlimited\)"
    ) as caught:
        LogConfig.parse({"retention.ms": value})
    assert caught.value.key == "retention.ms"


@pytest.mark.parametrize(
    ("value", "policy"),
    [
        ("compact", CleanupPolicy.COMPACT),
        ("delete, compact", CleanupPolicy.COMPACT_DELETE),
        ("compact,delete", CleanupPolicy.COMPACT_DELETE),
        (CleanupPolicy.DELETE, CleanupPolicy.DELETE),
    ],
)
def test_a_cleanup_policy_is_a_list_without_order(value, policy):
    assert LogConfig.parse({"cleanup.policy": value}).cleanup_policy is policy


def test_a_wrong_choice_names_the_choices():
    with pytest.raises(InvalidConfigError, match=r"takes one of: fsync \| interval \| os"):
        LogConfig.parse({"durability": "sometimes"})


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("retention.msec", "retention.ms"),
        ("segment_bytes", "segment.bytes"),
        ("mesage.ttl.ms", "message.ttl.ms"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, near):
    with pytest.raises(InvalidConfigError, match=f"did you mean '{near}'"):
        LogConfig.parse({key: 1})


@pytest.mark.parametrize("key", KAFKA_ONLY)
def test_a_key_that_only_kafka_has_is_refused_with_the_reason(key):
    with pytest.raises(InvalidConfigError, match="has no meaning here"):
        LogConfig.parse({key: 1})


def test_overrides_hold_what_differs_and_parse_back_to_the_same_configuration():
    config = LogConfig.parse(
        {"durability": "os", "min.cleanable.dirty.ratio": "0.25", "message.timestamp.type": "LogAppendTime"}
    )
    assert config.overrides == {
        "durability": "os",
        "message.timestamp.type": "LogAppendTime",
        "min.cleanable.dirty.ratio": "0.25",
    }
    assert config.message_timestamp_type is TimestampType.LOG_APPEND_TIME
    assert LogConfig.parse(config.overrides) == LogConfig.parse(config.as_dict()) == config


def test_changes_come_on_top_and_none_takes_a_key_back_to_its_default():
    config = LogConfig.parse({"retention.ms": 5, "durability": "os"})
    changed = config.with_changes({"retention.ms": None, "segment.bytes": 1024})
    assert changed.overrides == {"durability": "os", "segment.bytes": "1024"}
    with pytest.raises(InvalidConfigError, match="unknown"):
        config.with_changes({"nonsense.key": None})


def test_a_minimum_lag_above_the_maximum_is_refused():
    with pytest.raises(InvalidConfigError, match="lower the one"):
        LogConfig.parse({"min.compaction.lag.ms": 10, "max.compaction.lag.ms": 5})


def test_the_reference_has_a_row_for_every_key_in_alphabetical_order():
    names = [key.name for key in config_keys()]
    assert names == sorted(names)
    table = config_markdown()
    assert all(f"| `{name}` |" in table for name in names)
    assert {line.count("|") for line in table.splitlines()} == {6}
