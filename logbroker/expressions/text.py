"""What the text of an expression shows without being parsed: its size, and what its names are.

The parser and the evaluator are native code that recurses on the C stack and checks nothing. What makes them
recurse is bounded here, so that the 512 KiB of a small thread are enough: nesting in brackets and
conditionals, and long chains (``a.b.c…``, ``1+1+…``), which are bounded by the number of parts. A
comprehension (``all``, ``exists``, ``map`` …) goes over a list that comes with a record, so of these only two
may be nested.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from logbroker_storage.errors import InvalidRequestError

MAX_CHARACTERS = 8192
MAX_PARTS = 1000  # names, literals, operators and brackets
MAX_NESTING = 32  # of brackets and conditionals; the parser takes 10 KiB of stack for each
MAX_COMPREHENSIONS = 2  # in each other
MAX_JSON_PATH = 8  # names of a path that are told apart
COMPREHENSIONS = frozenset(["all", "exists", "exists_one", "map", "filter"])
NAMESPACES = frozenset(["strings", "math", "sets", "base64"])

# As the parser's own lexer has them: a quote that begins no sound string is a mark, and what follows counts.
_ESCAPE = r"""\\(?:[abfnrtv"'`?\\]|[xX][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-3][0-7]{2})"""
_STRING = "|".join(
    f"{prefix}{quote}(?:{body})*{quote}"
    for prefix, escape in (("[bB]?", _ESCAPE), ("[bB]?[rR]", r"\\"))
    for quote, body in (
        ("'{3}", rf"(?!'{{3}})[^\\]|{escape}"),
        ('"{3}', rf'(?!"{{3}})[^\\]|{escape}'),
        ("'", rf"[^'\\\n\r]|{escape}"),
        ('"', rf'[^"\\\n\r]|{escape}'),
    )
)
_PARTS = re.compile(
    rf"""(?P<space>\s+|//[^\n]*)
    |(?P<string>{_STRING})
    |(?P<word>[A-Za-z_][A-Za-z_0-9]*)
    |(?P<number>[0-9][A-Za-z0-9_.]*)
    |(?P<mark>.)""",
    re.VERBOSE | re.DOTALL,
)
_OPENING, _CLOSING = "([{", ")]}"


class Shape(NamedTuple):
    """What can be told of an expression without parsing it."""

    bound: frozenset[str]  # the variables of its comprehensions
    called: frozenset[str]  # its functions, with their namespace if there is one
    namespaces: frozenset[str]
    json_paths: (
        frozenset[tuple[str, ...]] | None
    )  # the fields of ``json`` that it uses; None: ``json`` as a whole


def shape_of(text: str) -> Shape:
    """Bound *text*, and find what its names are.

    Raises:
        InvalidRequestError: it is too long, or nested too deep.
    """
    if len(text) > MAX_CHARACTERS:
        raise invalid_expression(text, f"it has {len(text)} characters; {MAX_CHARACTERS} are allowed")
    parts = _parts(text)
    if len(parts) > MAX_PARTS:
        raise invalid_expression(text, f"it has {len(parts)} parts; {MAX_PARTS} are allowed")
    if parts.count("?") > MAX_NESTING:
        raise invalid_expression(text, f"it has more than {MAX_NESTING} conditionals")
    bound, called, namespaces = set(), set(), set()
    open_brackets: list[bool] = []  # whether it is a comprehension's
    padded = ["", "", "", "", *parts, "", "", ""]
    for at, part in enumerate(padded[:-3]):
        if part in _CLOSING and part and open_brackets:
            open_brackets.pop()
        if not part or part not in _OPENING:
            continue
        name, before = padded[at - 1], padded[at - 2]
        is_comprehension = part == "(" and before == "." and name in COMPREHENSIONS
        open_brackets.append(is_comprehension)
        if len(open_brackets) > MAX_NESTING:
            raise invalid_expression(text, f"its brackets are nested deeper than {MAX_NESTING}")
        if sum(open_brackets) > MAX_COMPREHENSIONS:
            names = ", ".join(sorted(COMPREHENSIONS))
            raise invalid_expression(text, f"more than {MAX_COMPREHENSIONS} of {names} in each other")
        if is_comprehension and padded[at + 2] == ",":
            bound.add(padded[at + 1])
        if part == "{" and _is_word(name) and name != "in":
            raise invalid_expression(
                text, f"there is no message type {name!r}: only maps can be made, as {{'a': 1}}"
            )
        if part == "(" and _is_word(name) and name != "in":
            namespace = padded[at - 3] if before == "." and padded[at - 4] != "." else ""
            if namespace in NAMESPACES:
                namespaces.add(namespace)
                called.add(f"{namespace}.{name}")
            else:
                called.add(name)
    json_paths = None if "json" in bound else _json_paths(padded)
    return Shape(frozenset(bound), frozenset(called), frozenset(namespaces), json_paths)


def _json_paths(padded: list[str]) -> frozenset[tuple[str, ...]] | None:
    """What stands behind each ``json``, up to a call, an index or an operator."""
    paths = set()
    for at, part in enumerate(padded):
        if part != "json" or padded[at - 1] == ".":
            if part == "json" and not (_is_word(padded[at - 2]) or padded[at - 2] in tuple(')]}"')):
                return None  # ``.json``, which is the variable in spite of the dot
            continue
        end = at + 1
        while padded[end] == "." and _is_word(padded[end + 1]) and padded[end + 2] != "(":
            end += 2
        path = tuple(padded[at + 2 : end : 2])[:MAX_JSON_PATH]
        if not path:
            return None
        paths.add(path)
    return frozenset(paths)


def _parts(text: str) -> list[str]:
    """Words and marks as they are, each string as a quote."""
    return [
        '"' if found.lastgroup == "string" else found[0]
        for found in _PARTS.finditer(text)
        if found.lastgroup != "space"
    ]


def _is_word(part: str) -> bool:
    return part[:1].isalpha() or part[:1] == "_"


def invalid_expression(text: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"expression {shortened(text)!r}: {reason}")


def shortened(text: str, characters: int = 200) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
