"""What is in fields: mask, insert, cast."""

from __future__ import annotations

import copy
import datetime
import decimal
import hashlib
import hmac
import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from logbroker_storage.errors import InvalidRequestError

from ..draft import Draft
from ..errors import StepFailed
from ..evaluation import evaluator
from ..options import Step, StepOptions, Surroundings
from ..paths import MISSING, change_each, find, parse_path, put
from ..values import as_bytes, as_text
from .fields import Missing, missing_field

MAX_NUMBER_CHARACTERS = 1000


class Mask(StepOptions, frozen=True):
    """Make fields unreadable: by a hash, a fixed text, or all but their last characters."""

    fields: list[str]
    method: Literal["hash", "redact", "last"] = "redact"
    replacement: str = "***"  # redact
    keep: int = 4  # last: how many characters stay; what is shorter is masked whole
    key: str = (
        ""  # hash: HMAC-SHA-256 with this key; without, plain SHA-256, which can be guessed for short values
    )
    missing: Missing = "ignore"

    def build(self, around: Surroundings) -> Step:
        paths = [parse_path(field, allow_each=True) for field in self.fields]
        mask = self._mask()
        is_error = self.missing == "error"

        def mask_fields(draft: Draft) -> Draft:
            for path in paths:
                if not change_each(draft.payload, path, mask) and is_error:
                    raise missing_field(path)
            return draft

        return mask_fields

    def _mask(self) -> Callable[[Any], Any]:
        if self.method == "redact":
            replacement = self.replacement
            return lambda _: replacement
        if self.method == "hash":
            key = self.key.encode()
            if key:
                return lambda value: hmac.digest(key, as_bytes(value) or b"", "sha256").hex()
            return lambda value: hashlib.sha256(as_bytes(value) or b"").hexdigest()
        keep = self.keep
        if keep < 1:
            raise InvalidRequestError(
                'keep is the number of characters that stay; for none use method = "redact"'
            )

        def last(value: Any) -> str:
            text = as_text(value)
            hidden = len(text) - keep
            return "*" * len(text) if hidden <= 0 else "*" * hidden + text[hidden:]

        return last


class Insert(StepOptions, frozen=True):
    """Set a field to a constant or to the value of a CEL expression."""

    field: str
    value: Any = msgspec.UNSET
    expression: str | None = None
    overwrite: bool = True  # false: leave a field that is there as it is

    def build(self, around: Surroundings) -> Step:
        path = parse_path(self.field)
        if (self.value is msgspec.UNSET) == (self.expression is None):
            raise InvalidRequestError("give one of value and expression")
        overwrite = self.overwrite
        evaluate = _constant(self.value) if self.expression is None else evaluator(self.expression)

        def insert(draft: Draft) -> Draft:
            if overwrite or find(draft.payload, path) is MISSING:
                put(draft.payload, path, evaluate(draft))
            return draft

        return insert


def _constant(value: Any) -> Callable[[Draft], object]:
    if isinstance(value, (dict, list)):
        return lambda _: copy.deepcopy(value)  # a draft has its own: later steps may change it
    return lambda _: value


# Cast -----------------------------------------------------------------------------------------------------

Type = Literal["integer", "number", "text", "boolean", "decimal", "timestamp", "json"]


class Cast(StepOptions, frozen=True):
    """Give fields another type; null stays null."""

    fields: dict[str, Type]
    missing: Missing = "ignore"

    def build(self, around: Surroundings) -> Step:
        casts = [
            (parse_path(field, allow_each=True), _named(field, _CASTS[name]))
            for field, name in self.fields.items()
        ]
        is_error = self.missing == "error"

        def cast(draft: Draft) -> Draft:
            for path, change in casts:
                if not change_each(draft.payload, path, change) and is_error:
                    raise missing_field(path)
            return draft

        return cast


def _named(field: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def cast(value: Any) -> Any:
        if value is None:
            return None
        try:
            return change(value)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise StepFailed(f"field {field}: {_short(value)}: {error}") from None

    return cast


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, (str, bytes, int, float, bool)) else type(value).__name__
    return text if len(text) <= 60 else text[:59] + "…"


def _integer(value: Any) -> int:
    if isinstance(value, str):
        _check_length(value)
        return int(value)
    if isinstance(value, (float, decimal.Decimal)):
        if value != math.trunc(value):
            raise ValueError("it has a fraction, which an integer would lose")
        return math.trunc(value)
    if isinstance(value, datetime.datetime):
        return round(_aware(value).timestamp() * 1000)
    return int(_only(value, int))


def _number(value: Any) -> float:
    if isinstance(value, str):
        _check_length(value)
        return float(value)
    return float(_only(value, (int, float, decimal.Decimal)))


def _boolean(value: Any) -> bool:
    if isinstance(value, str):
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        found = known.get(value.strip().lower())
        if found is None:
            raise ValueError("text is true, 1, yes, false, 0 or no")
        return found
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    raise ValueError("only 0, 1 and text can be true or false")


def _decimal(value: Any) -> decimal.Decimal:
    if isinstance(value, str):
        _check_length(value)
    elif isinstance(value, float):
        value = repr(value)
    try:
        number = decimal.Decimal(_only(value, (str, int, decimal.Decimal)))
    except decimal.InvalidOperation:
        raise ValueError("it is no decimal number") from None
    _check_exponent(number)
    return number


def _timestamp(value: Any) -> datetime.datetime:
    if isinstance(value, datetime.datetime):
        return _aware(value)
    if isinstance(value, str):
        return _aware(datetime.datetime.fromisoformat(value))
    milliseconds = _only(value, (int, float))
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=milliseconds)


def _aware(moment: datetime.datetime) -> datetime.datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)


def _json(value: Any) -> Any:
    return msgspec.json.decode(_only(value, (str, bytes)))


def _only(value: Any, types: Any) -> Any:
    if not isinstance(value, types):
        raise TypeError(f"a {type(value).__name__} cannot become that")
    return value


def _check_length(text: str) -> None:
    if len(text) > MAX_NUMBER_CHARACTERS:
        raise ValueError(f"a number has at most {MAX_NUMBER_CHARACTERS} characters")


def _check_exponent(number: decimal.Decimal) -> None:
    """That *number* is no longer without its exponent: as an integer, 1e999999999 would be a gigabyte of digits."""
    if number.is_finite() and abs(number.adjusted()) > MAX_NUMBER_CHARACTERS:
        raise ValueError(f"a number has at most {MAX_NUMBER_CHARACTERS} digits before or behind its point")


_CASTS: dict[str, Callable[[Any], Any]] = {
    "integer": _integer,
    "number": _number,
    "text": as_text,
    "boolean": _boolean,
    "decimal": _decimal,
    "timestamp": _timestamp,
    "json": _json,
}
