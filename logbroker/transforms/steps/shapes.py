"""How fields are arranged: flatten, unflatten, split."""

from __future__ import annotations

from typing import Any

from logbroker_storage.errors import InvalidRequestError

from ...nesting import MAX_DEPTH
from ..draft import Draft
from ..errors import StepFailed
from ..options import Step, StepOptions, Surroundings
from ..paths import MISSING, find, parse_path, shown
from ..pipeline import MAX_MESSAGES
from .fields import map_of, missing_field


class Flatten(StepOptions, frozen=True):
    """Make one map of nested ones: ``{a = {b = 1}}`` becomes ``{"a.b" = 1}``."""

    separator: str = "."
    lists: bool = False  # also lists, their elements named by number

    def build(self, around: Surroundings) -> Step:
        separator, types = self.separator, (dict, list) if self.lists else (dict,)

        def flatten(draft: Draft) -> Draft:
            flat: dict[str, Any] = {}
            _flatten_into(flat, "", map_of(draft), separator, types, MAX_DEPTH)
            draft.payload = flat
            return draft

        return flatten


def _flatten_into(
    flat: dict[str, Any], prefix: str, value: Any, separator: str, types: tuple[type, ...], levels: int
) -> None:
    if not levels:
        raise StepFailed(f"the value is nested deeper than {MAX_DEPTH} levels")
    items = value.items() if type(value) is dict else enumerate(value)
    for key, inner in items:
        name = f"{prefix}{key}"
        if type(inner) in types and inner:  # an empty one has no fields to stand for it
            _flatten_into(flat, name + separator, inner, separator, types, levels - 1)
        elif name in flat:
            raise StepFailed(f"two fields would be called {name!r:.100}")
        else:
            flat[name] = inner


class Unflatten(StepOptions, frozen=True):
    """Make nested maps of one: ``{"a.b" = 1}`` becomes ``{a = {b = 1}}``."""

    separator: str = "."

    def build(self, around: Surroundings) -> Step:
        separator = self.separator
        if not separator:
            raise InvalidRequestError("separator is the text between the names; it cannot be empty")

        def unflatten(draft: Draft) -> Draft:
            nested: dict[str, Any] = {}
            for name, value in map_of(draft).items():
                segments = name.split(separator, MAX_DEPTH + 1) if isinstance(name, str) else [name]
                if len(segments) > MAX_DEPTH:
                    raise StepFailed(f"field {name[:40]!r}… would be nested deeper than {MAX_DEPTH} levels")
                inner = nested
                for segment in segments[:-1]:
                    inner = inner.setdefault(segment, {})
                    if type(inner) is not dict:
                        raise StepFailed(f"field {name!r:.100} would be inside of a field that is no map")
                if segments[-1] in inner:
                    raise StepFailed(f"field {name!r:.100} would be there twice")
                inner[segments[-1]] = value
            draft.payload = nested
            return draft

        return unflatten


class Split(StepOptions, frozen=True):
    """Make a message of each element of a list, which is the value or one of its fields."""

    field: str | None = None
    keep: list[str] = []  # fields from around the list that each element gets as well

    def build(self, around: Surroundings) -> Step:
        path = None if self.field is None else parse_path(self.field)
        kept = [parse_path(field) for field in self.keep]
        if kept and path is None:
            raise InvalidRequestError("keep names fields beside the list, so field has to name the list")
        name = "the value" if path is None else f"field {shown(path)}"

        def split(draft: Draft) -> list[Draft]:
            elements = draft.payload if path is None else find(draft.payload, path)
            if elements is MISSING and path is not None:
                raise missing_field(path)
            if type(elements) is not list:
                raise StepFailed(f"{name} is a {type(elements).__name__}, not a list")
            if len(elements) > MAX_MESSAGES:
                raise StepFailed(
                    f"{name} has {len(elements)} elements; at most {MAX_MESSAGES} become messages"
                )
            around_them = {}
            for kept_path in kept:
                found = find(draft.payload, kept_path)
                if type(found) in (dict, list):
                    raise StepFailed(
                        f"keep: field {shown(kept_path)} is a {type(found).__name__}, not one value"
                    )
                if found is not MISSING:
                    around_them[kept_path[-1]] = found
            return [draft.with_payload(_with(element, around_them)) for element in elements]

        return split


def _with(element: Any, fields: dict[str, Any]) -> Any:
    if not fields:
        return element
    if type(element) is not dict:
        raise StepFailed(f"keep: an element is a {type(element).__name__}, not a map")
    return {**fields, **element}
