"""A topic's configuration: Kafka's keys where they mean something here, and ours, in one table.

``LogConfig`` *is* the table: one field a key, with its default, its allowed values and its line of
documentation. Parsing, checking, error messages and ``docs/config.md`` are read off the fields.

A field's name is the key with dots turned into underscores: ``segment.bytes`` is ``segment_bytes``.
A limit of -1 means "none", as in Kafka. Keys of Kafka that could only be ignored here (replicas,
flush counts) are refused with the reason, because a setting that silently does nothing misleads.
"""

# ruff: noqa: RUF009  (the calls in LogConfig's body make dataclass fields, which is what they are for)

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import InvalidConfigError, InvalidRequestError

ConfigValue = str | int | float | bool

INT32_MAX = (1 << 31) - 1
INT64_MAX = (1 << 63) - 1
UNLIMITED = -1
DAY_MS = 86_400_000


class Durability(enum.Enum):
    """What an acknowledgement of ``acks="all"`` has waited for."""

    FSYNC = "fsync"
    INTERVAL = "interval"
    OS = "os"


class CleanupPolicy(enum.Enum):
    """What the cleaner does with sealed segments."""

    DELETE = "delete"
    COMPACT = "compact"
    COMPACT_DELETE = "compact,delete"

    @property
    def deletes(self) -> bool:
        return self is not CleanupPolicy.COMPACT

    @property
    def compacts(self) -> bool:
        return self is not CleanupPolicy.DELETE


class RetentionPolicy(enum.Enum):
    """What makes a segment old enough to be deleted."""

    TIME = "time"
    CONSUMED = "consumed"


class TimestampType(enum.Enum):
    """Whose clock a record's timestamp comes from."""

    CREATE_TIME = "CreateTime"
    LOG_APPEND_TIME = "LogAppendTime"


class TopicCompression(enum.Enum):
    """The codec that a topic's batches are stored with."""

    PRODUCER = "producer"
    UNCOMPRESSED = "uncompressed"
    GZIP = "gzip"
    SNAPPY = "snappy"
    LZ4 = "lz4"
    ZSTD = "zstd"


# How a column of the table is written ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ConfigKey:
    """One row of the table: a key, what it takes, and what it is for."""

    name: str
    type: str
    default: str
    allowed: str
    doc: str


@dataclasses.dataclass(frozen=True)
class _Column:
    """How the values of a field are checked: a number in a range, or a member of an enum."""

    doc: str
    number: type[int] | type[float] | None = None
    minimum: float = 0
    maximum: float = INT64_MAX
    choices: type[enum.Enum] | None = None

    @property
    def type(self) -> str:
        return "string" if self.number is None else self.number.__name__

    @property
    def allowed(self) -> str:
        if self.choices is not None:
            return " | ".join(str(choice.value) for choice in self.choices)
        if self.minimum == UNLIMITED:
            return f"-1 (unlimited) or 0 to {_short(self.maximum)}"
        return f"{_short(self.minimum)} to {_short(self.maximum)}"

    def parse(self, value: ConfigValue) -> Any:
        """The checked value; ValueError when it is none of the allowed ones."""
        if self.choices is not None:
            return self.choices(_normal_choice(value))
        assert self.number is not None
        if isinstance(value, bool):
            raise ValueError(value)
        number = self.number(value)
        if isinstance(value, float) and number != value:
            raise ValueError(value)
        if not self.minimum <= number <= self.maximum:
            raise ValueError(value)
        return number


def _short(number: float) -> str:
    return {INT32_MAX: "2^31-1", INT64_MAX: "2^63-1"}.get(
        int(number), f"{number:g}" if number < 1e6 else str(number)
    )


def _normal_choice(value: object) -> str:
    """Kafka's lists have no order: ``delete, compact`` is ``compact,delete``."""
    if isinstance(value, enum.Enum):
        value = value.value
    return ",".join(sorted(part.strip() for part in str(value).split(",")))


def _integer(default: int, doc: str, *, minimum: int = 0, maximum: int = INT64_MAX) -> Any:
    column = _Column(doc, number=int, minimum=minimum, maximum=maximum)
    return dataclasses.field(default=default, metadata={"column": column})


def _ratio(default: float, doc: str) -> Any:
    return dataclasses.field(
        default=default, metadata={"column": _Column(doc, number=float, minimum=0, maximum=1)}
    )


def _choice(default: enum.Enum, doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"column": _Column(doc, choices=type(default))})


# The table --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """A topic's configuration, checked. Build it with ``LogConfig.parse``; it never changes."""

    cleanup_policy: CleanupPolicy = _choice(
        CleanupPolicy.DELETE,
        "delete: old segments go; compact: the newest record of each key stays; or both.",
    )
    compression_type: TopicCompression = _choice(
        TopicCompression.PRODUCER,
        "Codec of the stored batches; producer: as the producer chose.",
    )
    deduplication_window_ms: int = _integer(
        120_000,
        "Of the records with one message_id that are sent within this time of the first, only that one is "
        "appended; 0: all are.",
    )
    delete_retention_ms: int = _integer(
        DAY_MS, "How long compaction keeps a tombstone, so that late readers see the deletion."
    )
    durability: Durability = _choice(
        Durability.FSYNC,
        "What an acknowledgement waits for: fsync (on the disk), interval (synced every "
        "durability.interval.ms), os (the operating system decides).",
    )
    durability_interval_ms: int = _integer(
        1_000, "With durability=interval: at most this much time lies between two disk syncs.", minimum=1
    )
    file_delete_delay_ms: int = _integer(
        60_000, "How long the file of a deleted segment stays on the disk for readers that are still in it."
    )
    index_interval_bytes: int = _integer(
        4_096, "Bytes of log between two entries of the offset index.", maximum=INT32_MAX
    )
    max_compaction_lag_ms: int = _integer(
        INT64_MAX, "A record is compacted at the latest when it is this old.", minimum=1
    )
    max_message_bytes: int = _integer(
        1_048_588, "The largest record batch that is taken, in bytes, after compression.", maximum=INT32_MAX
    )
    message_timestamp_after_max_ms: int = _integer(
        3_600_000, "A record whose timestamp lies further in the future is refused."
    )
    message_timestamp_before_max_ms: int = _integer(
        INT64_MAX, "A record whose timestamp lies further in the past is refused."
    )
    message_timestamp_type: TimestampType = _choice(
        TimestampType.CREATE_TIME,
        "Whose clock a record's timestamp comes from: its producer's, or the log's.",
    )
    message_ttl_ms: int = _integer(
        UNLIMITED,
        "A record older than this is never delivered; a record's own ttl, if shorter, comes first.",
        minimum=UNLIMITED,
    )
    min_cleanable_dirty_ratio: float = _ratio(
        0.5, "Compaction starts when at least this share of the log has not been compacted yet."
    )
    min_compaction_lag_ms: int = _integer(0, "A record stays uncompacted at least this long.")
    retention_bytes: int = _integer(
        UNLIMITED, "Old segments go while a partition is larger than this.", minimum=UNLIMITED
    )
    retention_ms: int = _integer(
        7 * DAY_MS, "Segments whose newest record is older than this go.", minimum=UNLIMITED
    )
    retention_policy: RetentionPolicy = _choice(
        RetentionPolicy.TIME,
        "time: retention.ms and retention.bytes decide; consumed: segments also go as soon as every "
        "subscribed group has committed past them.",
    )
    segment_bytes: int = _integer(
        1 << 30,
        "A segment file is at most this large, unless a single batch is larger.",
        minimum=14,
        maximum=INT32_MAX,
    )
    segment_index_bytes: int = _integer(
        10 << 20, "An index file is at most this large.", minimum=4, maximum=INT32_MAX
    )
    segment_ms: int = _integer(
        7 * DAY_MS,
        "A segment is sealed at the latest when it is this old, even when it is not full.",
        minimum=1,
    )

    @classmethod
    def parse(cls, settings: Mapping[str, ConfigValue]) -> LogConfig:
        """The configuration that *settings* (keys as in Kafka, with dots) give, defaults for the rest.

        Raises:
            InvalidConfigError: an unknown key (the message names the nearest), or a bad value.
            InvalidRequestError: *settings* are no mapping.
        """
        _check_mapping(settings)
        values = {_field_of(key).name: _parse_value(key, value) for key, value in settings.items()}
        config = cls(**values)
        if config.min_compaction_lag_ms > config.max_compaction_lag_ms:
            raise InvalidConfigError(
                "min.compaction.lag.ms",
                f"min.compaction.lag.ms={config.min_compaction_lag_ms} is above "
                f"max.compaction.lag.ms={config.max_compaction_lag_ms}; lower the one or raise the other",
            )
        return config

    def with_changes(self, settings: Mapping[str, ConfigValue | None]) -> LogConfig:
        """This configuration with *settings* on top; None takes a key back to its default.

        Raises:
            InvalidConfigError, InvalidRequestError: as ``parse``.
        """
        _check_mapping(settings)
        changed: dict[str, ConfigValue] = dict(self.overrides)
        for key, value in settings.items():
            if value is None:
                _field_of(key)
                changed.pop(key, None)
            else:
                changed[key] = value
        return self.parse(changed)

    @property
    def overrides(self) -> dict[str, str]:
        """The keys whose value is not the default, as strings, in alphabetical order."""
        return {
            field.name.replace("_", "."): _text(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def as_dict(self) -> dict[str, str]:
        """Every key with its value as a string, in alphabetical order; ``parse`` takes it back."""
        return {
            field.name.replace("_", "."): _text(getattr(self, field.name))
            for field in dataclasses.fields(self)
        }


_FIELDS = {field.name.replace("_", "."): field for field in dataclasses.fields(LogConfig)}

KAFKA_ONLY: dict[str, str] = {
    "compression.gzip.level": "the producer compresses: set the level there",
    "compression.lz4.level": "the producer compresses: set the level there",
    "compression.zstd.level": "the producer compresses: set the level there",
    "flush.messages": "durability=fsync syncs every acknowledged record",
    "flush.ms": "use durability=interval with durability.interval.ms",
    "follower.replication.throttled.replicas": "a directory has no replicas",
    "leader.replication.throttled.replicas": "a directory has no replicas",
    "local.retention.bytes": "there is no remote storage: use retention.bytes",
    "local.retention.ms": "there is no remote storage: use retention.ms",
    "message.downconversion.enable": "only the current record format is stored",
    "message.format.version": "only the current record format is stored",
    "message.timestamp.difference.max.ms": "use message.timestamp.before.max.ms and …after.max.ms",
    "min.insync.replicas": "a directory has no replicas: see durability",
    "preallocate": "segments grow as they are written",
    "remote.storage.enable": "there is no remote storage",
    "segment.jitter.ms": "one cleaner serves all partitions, so rolls need no spreading",
    "unclean.leader.election.enable": "a directory has no replicas",
}
"""Kafka's topic keys that mean nothing here, and what to use instead."""


def _check_mapping(settings: object) -> None:
    if not isinstance(settings, Mapping):
        raise InvalidRequestError(
            "a configuration is a mapping of keys to values, such as {'retention.ms': 60000}, not "
            f"{settings!r:.100}"
        )


def _field_of(key: str) -> dataclasses.Field[Any]:
    if not isinstance(key, str):
        raise InvalidConfigError(repr(key), f"a configuration key is text, not {type(key).__name__}: {key!r}")
    field = _FIELDS.get(key)
    if field is not None:
        return field
    if key in KAFKA_ONLY:
        raise InvalidConfigError(key, f"configuration key {key!r} has no meaning here: {KAFKA_ONLY[key]}")
    # A field name is the commonest slip (segment_bytes), then a typing error.
    near = difflib.get_close_matches(key.replace("_", ".").lower(), _FIELDS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(_FIELDS)}"
    raise InvalidConfigError(key, f"unknown configuration key {key!r}; {hint}")


def _column_of(field: dataclasses.Field[Any]) -> _Column:
    column = field.metadata["column"]
    assert isinstance(column, _Column)
    return column


def _parse_value(key: str, value: ConfigValue) -> Any:
    column = _column_of(_field_of(key))
    try:
        return column.parse(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidConfigError(
            key, f"{key}={value!r} is not allowed; it takes {_article(column.type)}: {column.allowed}"
        ) from None


def _article(type_name: str) -> str:
    return {"int": "an integer", "float": "a number", "string": "one of"}[type_name]


def _text(value: object) -> str:
    return str(value.value) if isinstance(value, enum.Enum) else str(value)


def config_keys() -> list[ConfigKey]:
    """Every key, in alphabetical order."""
    return [
        ConfigKey(
            name=name,
            type=_column_of(field).type,
            default=_text(field.default),
            allowed=_column_of(field).allowed,
            doc=_column_of(field).doc,
        )
        for name, field in _FIELDS.items()
    ]


def config_markdown(keys: Iterable[ConfigKey] | None = None) -> str:
    """The keys as a markdown table, for the configuration reference."""
    rows = [
        f"| `{key.name}` | {key.type} | `{key.default}` | {key.allowed.replace('|', 'or')} | {key.doc} |"
        for key in (config_keys() if keys is None else keys)
    ]
    return "\n".join(["| key | type | default | allowed | meaning |", "|---|---|---|---|---|", *rows, ""])
