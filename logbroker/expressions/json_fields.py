"""Of a JSON value only the fields that somebody asks for.

Most expressions look at two or three fields, and building all others, only to hand them to the expression
engine, which builds them once more, takes most of the time: with an event of 320 bytes 29 µs, where an
expression over one of its fields takes 6.5 (``benchmarks/test_transforms.py``). What the value is otherwise
does not change what an expression over these fields sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

Path = tuple[str, ...]
# A field's name, and which fields of it are wanted; None: all of it.
Fields = dict[str, "Fields | None"]

_decode = msgspec.json.Decoder().decode


def fields_of(paths: Iterable[Path]) -> Fields:
    """*paths*, none of them empty, as a tree."""
    tree: Fields = {}
    for path in sorted(paths, key=len):
        _add(tree, path)
    return tree


def _add(tree: Fields, path: Path) -> None:
    for name in path[:-1]:
        inner = tree.setdefault(name, {})
        if inner is None:
            return  # all of a field around it is wanted
        tree = inner
    tree.setdefault(path[-1], None)


def pick(document: Any, fields: Fields) -> Any:
    """Of a decoded *document* these fields; what is no map is given whole."""
    if type(document) is not dict:
        return document
    picked = {}
    for name, inner in fields.items():
        if name in document:
            value = document[name]
            picked[name] = value if inner is None else pick(value, inner)
    return picked


def json_reader(fields: Fields | None) -> Callable[[bytes], Any]:
    """What decodes JSON, of objects only these fields; None: all of it.

    It raises ValueError or RecursionError where there is no JSON. What is skipped is looked at less closely.
    """
    if fields is None:
        return _decode
    wanted = msgspec.json.Decoder(_struct(fields)).decode
    to_builtins = msgspec.to_builtins

    def read(value: bytes) -> Any:
        try:
            return to_builtins(wanted(value))
        except msgspec.ValidationError:
            return _decode(value)  # something on the way to a field is no object

    return read


def _struct(fields: Fields) -> type[msgspec.Struct]:
    """A type with these fields, which may be missing. Their names need not be Python's."""
    definitions = [
        (f"field_{number}", Any if inner is None else _struct(inner) | msgspec.UnsetType, msgspec.UNSET)
        for number, inner in enumerate(fields.values())
    ]
    names = {f"field_{number}": name for number, name in enumerate(fields)}
    return msgspec.defstruct("Wanted", definitions, rename=names)
