r"""Places in a decoded value, as dotted paths.

customer.name     the field ``name`` of the field ``customer``
items.0.sku       the first element of a list (a map may have a field "0" as well)
items.*.price     of each element, or of each field; for steps that change what is there
a\.b              a field with a dot in its name
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from logbroker_storage.errors import InvalidRequestError

from .errors import StepFailed

Path = tuple[str, ...]
EACH = "*"
MAX_SEGMENTS = 32

_SEGMENT = re.compile(r"(?:[^.\\]|\\.)*", re.DOTALL)


class _Missing:
    """Stands for what is not there, where None would be a value."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


def parse_path(text: str, *, allow_each: bool = False) -> Path:
    """The segments of *text*.

    Raises:
        InvalidRequestError: an empty segment, too many, or ``*`` where one place is meant.
    """
    segments = tuple(re.sub(r"\\(.)", r"\1", segment) for segment in _split(text))
    if not all(segments):
        raise InvalidRequestError(f"field {text!r} has an empty part; write for example customer.name")
    if len(segments) > MAX_SEGMENTS:
        raise InvalidRequestError(f"field {text[:40]!r}… has more than {MAX_SEGMENTS} parts")
    if EACH in segments and not allow_each:
        raise InvalidRequestError(f"field {text!r}: one field is meant here, so * cannot stand in it")
    return segments


def _split(text: str) -> list[str]:
    segments, at = [], 0
    while True:
        found = _SEGMENT.match(text, at)
        assert found is not None, "it matches nothing, too"
        segments.append(found[0])
        at = found.end() + 1
        if at > len(text):
            return segments


def find(value: Any, path: Path) -> Any:
    """What is at *path*, or MISSING."""
    for segment in path:
        if type(value) is dict:
            value = value.get(segment, MISSING)
        elif type(value) is list:
            index = _index(value, segment)
            if index is None:
                return MISSING
            value = value[index]
        else:
            return MISSING
    return value


def put(value: Any, path: Path, new: object) -> None:
    """Set what is at *path*, making the maps on the way there.

    Raises:
        StepFailed: something on the way is no map, or a list is too short.
    """
    for segment in path[:-1]:
        inner = find(value, (segment,))
        if inner is MISSING:
            inner = {}
            _set(value, segment, inner, path)
        value = inner
    _set(value, path[-1], new, path)


def _set(container: Any, segment: str, new: object, path: Path) -> None:
    if type(container) is dict:
        container[segment] = new
        return
    if type(container) is list:
        index = _index(container, segment)
        if index is not None:
            container[index] = new
            return
        raise StepFailed(f"field {shown(path)}: the list has {len(container)} elements")
    raise StepFailed(
        f"field {shown(path)}: {segment!r} would be in a {type(container).__name__}, not in a map"
    )


class Removals:
    """What takes places out of one value, for a step that names several.

    A list keeps its length until ``close``, so that a number in a path means the same element whatever was taken out
    before; what is put where one was takes its place.
    """

    def __init__(self) -> None:
        self._lists: list[list[Any]] = []  # with MISSING in them

    def take(self, value: Any, path: Path) -> Any:
        """Take out what is at *path* and return it; MISSING when it is not there."""
        container = find(value, path[:-1])
        found = find(container, path[-1:])
        if found is not MISSING:
            self._take(container, path[-1])
        return found

    def take_each(self, value: Any, path: Path) -> int:
        """Take out whatever *path* matches; how many there were."""
        taken = 0
        for container in _containers(value, path):
            for key in _keys(container, path[-1]):
                self._take(container, key)
                taken += 1
        return taken

    def _take(self, container: Any, key: Any) -> None:
        if type(container) is dict:
            del container[key]
        else:
            container[int(key)] = MISSING
            self._lists.append(container)

    def close(self) -> None:
        """Let the elements of lists move up."""
        for elements in self._lists:
            elements[:] = [element for element in elements if element is not MISSING]


def change_each(value: Any, path: Path, change: Callable[[Any], Any]) -> int:
    """Replace whatever *path* matches by what *change* makes of it; how many there were."""
    changed = 0
    for container in _containers(value, path):
        for key in _keys(container, path[-1]):
            container[key] = change(container[key])
            changed += 1
    return changed


def _containers(value: Any, path: Path) -> list[Any]:
    """The maps and lists in which the last segment of *path* may be."""
    containers = [value]
    for segment in path[:-1]:
        containers = [container[key] for container in containers for key in _keys(container, segment)]
    return containers


def _keys(container: Any, segment: str) -> Sequence[Any]:
    """The fields or the elements of *container* that *segment* matches."""
    if type(container) is dict:
        return list(container) if segment == EACH else [segment] if segment in container else []
    if type(container) is list:
        if segment == EACH:
            return range(len(container))
        index = _index(container, segment)
        return [] if index is None else [index]
    return ()


def _index(container: list[Any], segment: str) -> int | None:
    if segment.isascii() and segment.isdigit() and len(segment) < 10:
        index = int(segment)
        if index < len(container):
            return index
    return None


def shown(path: Path) -> str:
    """*path* as it is written."""
    return ".".join(segment.replace("\\", "\\\\").replace(".", "\\.") for segment in path)
