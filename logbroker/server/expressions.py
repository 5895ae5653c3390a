"""Regular expressions that clients send, over names of topics and transactional ids: only such as end in good time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..topic_names import MAX_NAME_CHARACTERS

MAX_EXPRESSION_LENGTH = 1_000
MAX_EXPRESSION_DEPTH = 20
MAX_EXPRESSION_REPEAT = 1_000  # RE2's own limit
MAX_EXPRESSION_WAYS = 100_000_000

_TOKEN = re.compile(
    r"""
      (?P<flags>  \(\?[ims]+\) )
    | (?P<open>   \( (?: \?(?: P<\w+> | [ims]*(?:-[ims]+)?: ) )? (?!\?) )
    | (?P<close>  \) )
    | (?P<bar>    \| )
    | (?P<repeat> (?: [*+?] | \{\d+(?:,\d*)?\} | \{,\d*\} ) \?? )
    | (?P<set>    \[\^?\]? (?: \\. | [^\]\\] )* \] )
    | (?P<other>  \(\? | \\\d | \\\Z )
    | (?P<atom>   \\. | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_ODD_IN_SETS = re.compile(r"(?<!\\)\[|--|&&|~~|\|\|")


class ExpressionError(Exception):
    """Why an expression is refused."""


def compile_expression(expression: str) -> re.Pattern[str]:
    """The pattern that whole names are matched with.

    Kafka uses RE2, which has no look-around and no back-references and takes linear time. Python's engine
    tries one way to match after another, so an expression is refused when it might have too many: a
    repeat (or ``{m,n}``) around something that itself repeats or has alternatives, or, counting a repeat
    as one way for each length of the longest topic name, more than ``MAX_EXPRESSION_WAYS`` ways in all;
    that is about three wildcards in one alternative. The count errs on the side of refusing.

    Raises:
        ExpressionError: says why it is refused.
    """
    try:
        if len(expression) > MAX_EXPRESSION_LENGTH:
            raise ExpressionError(f"it is longer than {MAX_EXPRESSION_LENGTH} characters")
        if _ways_to_match(expression) > MAX_EXPRESSION_WAYS:
            raise ExpressionError("it has too many wildcards or alternatives; split or simplify it")
        return re.compile(expression)
    except (ExpressionError, re.error) as error:
        raise ExpressionError(
            f"The regular expression {expression[:100]!r} cannot be used: {error}."
        ) from error


@dataclass(slots=True)
class _Alternatives:
    """The ways to match a group so far: of finished branches, of the open one, of its last atom."""

    finished: int = 0
    branch: int = 1
    last: int | None = None  # None: there is nothing that could be repeated

    def append(self, ways: int, *, repeatable: bool = True) -> None:
        self.branch *= 1 if self.last is None else self.last
        self.last = ways
        if not repeatable:
            self.branch, self.last = self.branch * ways, None

    def end_branch(self) -> None:
        self.append(1, repeatable=False)
        self.finished, self.branch = self.finished + self.branch, 1

    def repeat(self, token: str) -> None:
        if self.last is None:
            raise ExpressionError(f"there is nothing that {token} could repeat")
        ways, self.last = _repeated(self.last, token), None
        self.append(ways, repeatable=False)


def _repeated(ways: int, token: str) -> int:
    """How many ways there are to match a repeat of something with *ways*."""
    least, most = _bounds(token.removesuffix("?") or token)
    if most <= 1:
        return ways + 1 if least == 0 else ways
    if ways > 1:
        raise ExpressionError(f"{token} repeats something that repeats or has alternatives itself")
    return max(1, most - least + 1)


def _bounds(token: str) -> tuple[int, int]:
    if token in _SIMPLE_BOUNDS:
        return _SIMPLE_BOUNDS[token]
    least, comma, most = token.strip("{}").partition(",")
    bounds = int(least or 0), int(most or MAX_NAME_CHARACTERS) if comma else int(least)
    if max(bounds) > MAX_EXPRESSION_REPEAT:
        raise ExpressionError(f"{token} repeats more than {MAX_EXPRESSION_REPEAT} times")
    return bounds


_SIMPLE_BOUNDS = {"*": (0, MAX_NAME_CHARACTERS), "+": (1, MAX_NAME_CHARACTERS), "?": (0, 1)}


def _ways_to_match(expression: str) -> int:
    """An upper bound, in the sense of ``compiled_expression``; unbalanced groups are left to the compiler."""
    stack = [_Alternatives()]
    for token in _TOKEN.finditer(expression):
        kind, text = token.lastgroup, token.group()
        if kind == "open":
            stack.append(_Alternatives())
            if len(stack) > MAX_EXPRESSION_DEPTH:
                raise ExpressionError(f"its groups are more than {MAX_EXPRESSION_DEPTH} deep")
        elif kind == "close" and len(stack) > 1:
            stack[-1].end_branch()
            ways = stack.pop().finished
            stack[-1].append(ways)
        elif kind == "bar":
            stack[-1].end_branch()
        elif kind == "repeat":
            stack[-1].repeat(text)
        elif kind == "other" or (kind == "set" and _ODD_IN_SETS.search(text, 1)):
            raise ExpressionError(f"{text} at {token.start()} is not supported")
        elif kind != "flags":
            stack[-1].append(1)
    stack[-1].end_branch()
    return stack[-1].finished
