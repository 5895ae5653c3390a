"""Which fields of ``json`` an expression uses, and decoding those alone.

A condition on ``json.total`` needs one number of a document that may have hundreds of fields. Making Python
objects of all, and then values of the expression engine of those, is what takes the time: 30 µs for an order of
250 bytes, 3 µs for its one field.

``fields_in`` goes by the text: where each ``json`` of an expression is followed by names with dots between, the
paths of these names are all that it can see. Anything else (``json["a"]``, ``size(json)``, ``x in json``, a
variable of that name) is None, and the document is decoded whole. A document that has another form than the paths
need, an array for ``json.a.b`` say, is also decoded whole, so that an expression finds the same in both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from .nesting import MAX_DEPTH, is_too_deep

VARIABLE = "json"
MAX_NAMES = 8  # of a path; what is deeper comes whole

_CONTAINERS = (dict, list)

Path = tuple[str, ...]


def fields_in(parts: Sequence[str]) -> list[Path] | None:
    """The paths below ``json`` in the words and marks of an expression; None where it may see more."""
    padded = ["", "", *parts, "", ""]
    paths = set()
    for at, part in enumerate(padded):
        if part != VARIABLE:
            continue
        if padded[at - 1] == ".":
            if not _ends_a_value(padded[at - 2]):
                return None  # ".json" is the variable, too
            continue  # a field of that name
        path = _path_from(padded, at + 1)
        if not path:
            return None
        paths.add(path)
    return sorted(paths)


def _ends_a_value(part: str) -> bool:
    return _is_word(part) or part in (")", "]", "}", '"')


def _path_from(padded: Sequence[str], at: int) -> Path:
    """The names with dots between from *at* on, without a method that is called in the end."""
    names: list[str] = []
    while padded[at] == "." and _is_word(padded[at + 1]) and len(names) < MAX_NAMES:
        if padded[at + 2] == "(":
            break
        names.append(padded[at + 1])
        at += 2
    if padded[at] == "." and not _is_word(padded[at + 1]):
        return ()  # ``json.?a`` and the like
    return tuple(names)


def _is_word(part: str) -> bool:
    return part[:1].isalpha() or part[:1] == "_"


class JsonFields:
    """Decodes some fields of a document into a mapping, nested as they are in it. Safe across threads."""

    def __init__(self, paths: Iterable[Path]) -> None:
        tree: dict[str, Any] = {}
        for path in sorted(paths, key=len):
            _plant(tree, path)
        self._shape = _Shape(tree)
        self._decode = msgspec.json.Decoder(self._shape.type).decode

    def decode(self, value: bytes) -> dict[str, object]:
        """The fields that there are in *value*, an object as JSON.

        Raises:
            ValueError: it is no JSON, of another form, or nested deeper than ``MAX_DEPTH``.
            RecursionError: nested deeper still.
        """
        return self._shape.mapping(self._decode(value))


def _plant(tree: dict[str, Any], path: Path) -> None:
    """Add *path*; nothing where the tree has all of one of its parents. Shorter paths come first."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
        if tree is _WHOLE:
            return
    tree[path[-1]] = _WHOLE


_WHOLE: dict[str, Any] = {}  # a field with all that is in it


class _Shape:
    """A type with some fields of an object, and a mapping of an instance of it."""

    def __init__(self, tree: dict[str, Any]) -> None:
        fields: list[tuple[str, Any, Any]] = []
        names = {}
        self._fields: list[tuple[str, str, _Shape | None]] = []
        for number, (name, below) in enumerate(tree.items()):
            attribute = f"f{number}"  # a field's name may be a word that Python keeps for itself
            shape = None if below is _WHOLE else _Shape(below)
            kind: Any = Any if shape is None else shape.type | msgspec.UnsetType
            fields.append((attribute, kind, msgspec.UNSET))
            names[attribute] = name
            self._fields.append((attribute, name, shape))
        self.type: Any = msgspec.defstruct("Fields", fields, rename=names)

    def mapping(self, fields: object) -> dict[str, object]:
        found = {}
        for attribute, name, shape in self._fields:
            value = getattr(fields, attribute)
            if value is msgspec.UNSET:
                continue
            if shape is not None:
                value = shape.mapping(value)
            elif type(value) in _CONTAINERS and is_too_deep(value, MAX_DEPTH - MAX_NAMES):
                raise ValueError("a field is nested too deep")
            found[name] = value
        return found
