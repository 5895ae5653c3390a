"""What is around the value: key, headers, timestamp."""

from __future__ import annotations

import datetime
import fnmatch
import math
import re
from collections.abc import Callable
from typing import Any

from logbroker_storage.errors import InvalidRequestError
from logbroker_storage.record_batch import RESERVED_HEADER_PREFIX

from ..draft import Draft
from ..errors import StepFailed
from ..evaluation import evaluator
from ..options import MAX_TIMESTAMP_MS, Form, Step, StepOptions, Surroundings
from ..paths import MISSING, find, parse_path
from ..values import as_bytes
from .fields import missing_field

UNITS_PER_MS = {"s": 0.001, "ms": 1, "us": 1000, "ns": 1_000_000}


class SetKey(StepOptions, frozen=True):
    """Set the key to a constant, a field or the value of a CEL expression; null takes it away."""

    takes = Form.ANY
    leaves = None
    sees_tombstones = True

    value: str | None = None
    field: str | None = None  # of the decoded value
    expression: str | None = None

    def build(self, around: Surroundings) -> Step:
        given = [choice for choice in (self.value, self.field, self.expression) if choice is not None]
        if len(given) != 1:
            raise InvalidRequestError("give one of value, field and expression")
        if self.value is not None:
            constant = self.value.encode()
            get: Callable[[Draft], Any] = lambda _: constant  # noqa: E731  (one of two getters)
        else:
            get = _field_getter(self.field) if self.field is not None else evaluator(self.expression or "")

        def set_key(draft: Draft) -> Draft:
            draft.key = as_bytes(get(draft))
            return draft

        return set_key


def _field_getter(field: str) -> Callable[[Draft], Any]:
    path = parse_path(field)

    def get(draft: Draft) -> Any:
        found = find(draft.payload, path)
        if found is MISSING:
            _check_decoded(draft)
            raise missing_field(path)
        return found

    return get


def _check_decoded(draft: Draft) -> None:
    if draft.is_tombstone:
        raise StepFailed("a tombstone has no fields")
    if not draft.is_decoded:
        raise StepFailed("the value is still bytes, and has no fields; decode it before")


class SetHeaders(StepOptions, frozen=True):
    """Set headers to constants, fields or the values of CEL expressions; a field that is not there sets none."""

    takes = Form.ANY
    leaves = None
    sees_tombstones = True

    values: dict[str, str] = {}
    fields: dict[str, str] = {}
    expressions: dict[str, str] = {}

    def build(self, around: Surroundings) -> Step:
        names = [*self.values, *self.fields, *self.expressions]
        if not names:
            raise InvalidRequestError('give values, fields or expressions, as values = { source = "shop" }')
        if len(set(names)) != len(names):
            raise InvalidRequestError("a header is set twice")
        for name in names:
            if name.startswith(RESERVED_HEADER_PREFIX):
                raise InvalidRequestError(f"header {name!r} is the broker's own; use another name")
        constants = [(name, value.encode()) for name, value in self.values.items()]
        paths = [(name, parse_path(field)) for name, field in self.fields.items()]
        evaluators = [(name, evaluator(text)) for name, text in self.expressions.items()]
        replaced = frozenset(names)

        def set_headers(draft: Draft) -> Draft:
            added: list[tuple[str, bytes | None]] = list(constants)
            for name, path in paths:
                found = find(draft.payload, path)
                if found is not MISSING:
                    added.append((name, as_bytes(found)))
            for name, evaluate in evaluators:
                added.append((name, as_bytes(evaluate(draft))))
            kept = [pair for pair in draft.headers if pair[0] not in replaced]
            draft.headers = (*kept, *added)
            return draft

        return set_headers


class RemoveHeaders(StepOptions, frozen=True):
    """Take headers away; ``x-*`` takes all that begin so."""

    takes = Form.ANY
    leaves = None
    sees_tombstones = True

    names: list[str]

    def build(self, around: Surroundings) -> Step:
        if not self.names:
            raise InvalidRequestError("names = [] takes no header away; name at least one")
        matches = re.compile("|".join(fnmatch.translate(name) for name in self.names)).match

        def remove_headers(draft: Draft) -> Draft:
            if draft.headers:
                draft.headers = tuple(pair for pair in draft.headers if not matches(pair[0]))
            return draft

        return remove_headers


class Timestamp(StepOptions, frozen=True):
    """Set the timestamp from a field, or to now."""

    takes = Form.ANY
    leaves = None

    field: str | None = None
    format: str = "ms"  # s, ms, us or ns since 1970; iso8601; or a strptime format, as "%d.%m.%Y %H:%M"
    now: bool = False

    def build(self, around: Surroundings) -> Step:
        if self.now == (self.field is not None):
            raise InvalidRequestError("give one of field and now = true")
        if self.field is None:
            now_ms = around.clock.now_ms

            def stamp_now(draft: Draft) -> Draft:
                draft.timestamp_ms = now_ms()
                return draft

            return stamp_now
        get, parse = _field_getter(self.field), _time_parser(self.format)

        def timestamp(draft: Draft) -> Draft:
            value = get(draft)
            try:
                milliseconds = parse(value)
            except (ValueError, TypeError, OverflowError) as error:
                raise StepFailed(f"{value!r:.60} is no time: {error}") from None
            if not 0 <= milliseconds <= MAX_TIMESTAMP_MS:
                raise StepFailed(
                    f"{value!r:.60} is before 1970 or after the year 9999; is its format another?"
                )
            draft.timestamp_ms = milliseconds
            return draft

        return timestamp


def _time_parser(format: str) -> Callable[[Any], int]:  # noqa: A002  (as the option is called)
    if format in UNITS_PER_MS:
        units = UNITS_PER_MS[format]

        def from_number(value: Any) -> int:
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise TypeError("a number is expected")
            number = float(value) if isinstance(value, str) else value
            return (
                int(number // units) if isinstance(number, int) and units >= 1 else math.floor(number / units)
            )

        return from_number
    if format == "iso8601":
        return lambda value: _milliseconds(
            value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(value)
        )
    if "%" not in format:
        raise InvalidRequestError(
            f"format {format!r} is none of {', '.join(UNITS_PER_MS)}, iso8601 or a strptime format such as %Y-%m-%d"
        )
    return lambda value: _milliseconds(datetime.datetime.strptime(value, format))  # noqa: DTZ007  (UTC if it has none)


def _milliseconds(moment: datetime.datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(milliseconds=1)
