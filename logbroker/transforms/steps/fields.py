"""Which fields there are, and what they are called: select, rename, drop.

A field that is not there is left alone, or with ``missing = "error"`` is an error.
"""

from __future__ import annotations

from typing import Literal

from logbroker_storage.errors import InvalidRequestError

from ..draft import Draft
from ..errors import StepFailed
from ..options import Step, StepOptions, Surroundings
from ..paths import MISSING, Path, Removals, find, parse_path, put, shown

Missing = Literal["ignore", "error"]


class Select(StepOptions, frozen=True):
    """Keep only these fields of a map."""

    fields: list[str]
    missing: Missing = "ignore"

    def build(self, around: Surroundings) -> Step:
        paths = [parse_path(field) for field in self.fields]
        if not paths:
            raise InvalidRequestError("fields = [] would keep nothing; name at least one field")
        is_error = self.missing == "error"

        def select(draft: Draft) -> Draft:
            source = map_of(draft)
            kept: dict[str, object] = {}
            for path in paths:
                found = find(source, path)
                if found is not MISSING:
                    _place(kept, path, found)
                elif is_error:
                    raise missing_field(path)
            draft.payload = kept
            return draft

        return select


def _place(kept: dict[str, object], path: Path, found: object) -> None:
    """An element of a list is kept as a field of its number: where its neighbours are gone, its place is too."""
    put(kept, path, found)


class Rename(StepOptions, frozen=True):
    """Call fields otherwise, or move them: old path = new path."""

    fields: dict[str, str]
    missing: Missing = "ignore"

    def build(self, around: Surroundings) -> Step:
        moves = [(parse_path(old), parse_path(new)) for old, new in self.fields.items()]
        if not moves:
            raise InvalidRequestError('fields = {} renames nothing; write fields = { old = "new" }')
        is_error = self.missing == "error"

        def rename(draft: Draft) -> Draft:
            payload = map_of(draft)
            # All are taken out before any is put back, so that two can change places.
            removals = Removals()
            taken = [(new, removals.take(payload, old)) for old, new in moves]
            for (old, _), (new, value) in zip(moves, taken, strict=True):
                if value is not MISSING:
                    put(payload, new, value)
                elif is_error:
                    raise missing_field(old)
            removals.close()
            return draft

        return rename


class Drop(StepOptions, frozen=True):
    """Take fields out; ``items.*.price`` takes it out of each element."""

    fields: list[str]
    missing: Missing = "ignore"

    def build(self, around: Surroundings) -> Step:
        paths = [parse_path(field, allow_each=True) for field in self.fields]
        is_error = self.missing == "error"

        def drop(draft: Draft) -> Draft:
            removals = Removals()
            for path in paths:
                if not removals.take_each(draft.payload, path) and is_error:
                    raise missing_field(path)
            removals.close()
            return draft

        return drop


def map_of(draft: Draft) -> dict[str, object]:
    """The payload, which a step needs to be a map."""
    payload = draft.payload
    if type(payload) is not dict:
        raise StepFailed(f"the value is a {type(payload).__name__}, not a map of fields")
    return payload


def missing_field(path: Path) -> StepFailed:
    return StepFailed(f"there is no field {shown(path)}")
