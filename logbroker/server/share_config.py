"""What Kafka clients configure of a share group: resources of type GROUP.

    key                                default          is
    share.auto.offset.reset            latest           where the group begins in a topic that it has not read
    share.record.lock.duration.ms      30000            the subscription's lease
    share.delivery.count.limit         5                the subscription's max_deliveries
    share.isolation.level              read_committed   fixed: nobody sees what a transaction has not committed

What is configured lasts, whether or not the group is there. Of one that is, the subscription's own rules are what
counts and is shown, whoever set them.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping

import msgspec

from logbroker_storage.errors import InvalidConfigError

from ..queues.settings import DEFAULT_LEASE_S, DEFAULT_MAX_DELIVERIES, MAX_DELIVERIES, MAX_LEASE_S
from ..start import Start
from ..subscriptions import Rules

OFFSET_RESET = "share.auto.offset.reset"
LOCK_DURATION = "share.record.lock.duration.ms"
DELIVERY_LIMIT = "share.delivery.count.limit"
ISOLATION_LEVEL = "share.isolation.level"
READ_COMMITTED = "read_committed"

DEFAULTS = {
    OFFSET_RESET: "latest",
    LOCK_DURATION: str(int(DEFAULT_LEASE_S * 1000)),
    DELIVERY_LIMIT: str(DEFAULT_MAX_DELIVERIES),
    ISOLATION_LEVEL: READ_COMMITTED,
}
NUMBERS = (LOCK_DURATION, DELIVERY_LIMIT)
DOCS = {
    OFFSET_RESET: "Where the group begins in a topic that is new to it: earliest, latest, by_duration:<ISO 8601>.",
    LOCK_DURATION: "How long a record stays with a consumer that does not answer.",
    DELIVERY_LIMIT: "After so many deliveries in vain a record is not delivered again.",
    ISOLATION_LEVEL: "Always read_committed.",
}

BY_DURATION = "by_duration:"
_DURATION = re.compile(
    r"P(?:(\d{1,6})D)?(?:T(?:(\d{1,6})H)?(?:(\d{1,6})M)?(?:(\d{1,9}(?:\.\d{1,9})?)S)?)?", re.ASCII
)


def check_config(config: Mapping[str, str]) -> None:
    """Hold that *config* can be a share group's.

    Raises:
        InvalidConfigError: a key is unknown, or its value is none.
    """
    for name, value in config.items():
        if name not in DEFAULTS:
            raise InvalidConfigError(
                name, f"{name} is no configuration of a share group; there are {', '.join(DEFAULTS)}"
            )
        if name == OFFSET_RESET:
            start_of(config, now_ms=0)
        elif name == LOCK_DURATION:
            _number(name, value, int(MAX_LEASE_S * 1000))
        elif name == DELIVERY_LIMIT:
            _number(name, value, MAX_DELIVERIES)
        elif value != READ_COMMITTED:
            raise InvalidConfigError(name, f"{name} is {READ_COMMITTED}, and cannot be changed")


def _number(name: str, value: str, most: int) -> int:
    if not re.fullmatch(r"\d{1,10}", value, re.ASCII) or not 1 <= int(value) <= most:
        raise InvalidConfigError(name, f"{name}={value}: give it a whole number from 1 to {most}")
    return int(value)


def start_of(config: Mapping[str, str], *, now_ms: int) -> Start:
    """Where a group with *config* begins in a topic that it has not read.

    Raises:
        InvalidConfigError: that is no place.
    """
    value = config.get(OFFSET_RESET, DEFAULTS[OFFSET_RESET])
    if value == "earliest":
        return "earliest"
    if value == "latest":
        return "latest"
    found = _DURATION.fullmatch(value.removeprefix(BY_DURATION)) if value.startswith(BY_DURATION) else None
    if found is None or not any(found.groups()):
        raise InvalidConfigError(
            OFFSET_RESET, f"{OFFSET_RESET}={value}: use earliest, latest, or by_duration: with one like PT1H"
        )
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    length = datetime.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    now = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC)
    epoch = datetime.datetime.fromtimestamp(0, datetime.UTC)
    return max(epoch, now - length) if length < now - epoch else epoch


def rules_of(config: Mapping[str, str], rules: Rules) -> Rules:
    """*rules* with what *config* names instead."""
    lease_ms = int(config.get(LOCK_DURATION, rules.lease_ms))
    max_deliveries = int(config.get(DELIVERY_LIMIT, rules.max_deliveries))
    return msgspec.structs.replace(rules, lease_ms=lease_ms, max_deliveries=max_deliveries)


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """What *after* says otherwise than *before*: what is no longer configured is the default again."""
    names = before.keys() | after.keys()
    return {
        name: after.get(name, DEFAULTS[name]) for name in sorted(names) if before.get(name) != after.get(name)
    }


def as_config(config: Mapping[str, str], rules: Rules | None) -> dict[str, str]:
    """All keys with their values; *rules* are those of the subscription, if there is one."""
    values = {**DEFAULTS, **config}
    if rules is not None:
        values[LOCK_DURATION] = str(rules.lease_ms)
        values[DELIVERY_LIMIT] = str(rules.max_deliveries)
    return values
