"""What callers give, checked: each function returns what it was given, or says what to give instead.

Names of things have theirs in ``topic_names``, times to wait in ``deadlines``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

from logbroker_storage.errors import InvalidRequestError

LONGEST_S = 2_147_483  # Kafka's own limit: milliseconds in an int32

Item = TypeVar("Item")


def whole_number(name: str, number: int, *, least: int = 1) -> int:
    """*number*, the argument *name*, if it is an integer from *least* on."""
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise InvalidRequestError(f"{name}={number!r}: give it a whole number from {least} on")
    return number


def positive_seconds(name: str, seconds: float) -> float:
    """*seconds*, the argument *name*, if it is a number above 0."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise InvalidRequestError(f"{name}={seconds!r}: give it a positive number of seconds")
    return seconds


def positive_milliseconds(name: str, seconds: float) -> int:
    """*seconds* in whole milliseconds, 1 at least, if it is above 0 and Kafka's protocol has room for it."""
    if positive_seconds(name, seconds) > LONGEST_S:
        raise InvalidRequestError(f"{name}={seconds!r}: give it up to {LONGEST_S} seconds")
    return max(1, int(seconds * 1000))


def utf8(name: str, text: str) -> bytes:
    """*text*, the argument *name*, as it is stored.

    Text with lone surrogates, which Python makes of file names that are no UTF-8, has no such form.
    """
    if not isinstance(text, str):
        raise InvalidRequestError(f"{name} is text, not {type(text).__name__}: {text!r:.100}")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"{name} {text!r} has no UTF-8 form: give it without lone surrogates"
        ) from None


def several(what: str, given: Iterable[Item]) -> Iterable[Item]:
    """*given*, if it is an iterable of *what*, and not one of them or text."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise InvalidRequestError(f"give {what} in a list, or another iterable, not {given!r:.100}")
    return given


def is_place(given: object) -> bool:
    """Whether it is a (topic, partition)."""
    return (
        isinstance(given, tuple)
        and len(given) == 2
        and isinstance(given[0], str)
        and type(given[1]) is int  # nor a bool, which is equal to one
    )


def place(given: tuple[str, int]) -> tuple[str, int]:
    """*given*, if it is a (topic, partition)."""
    if not is_place(given):
        raise InvalidRequestError(f"a partition of a topic is a (topic, number), not {given!r:.100}")
    return given


def path(given: str | os.PathLike[str]) -> str:
    """*given* as text, if it is a path."""
    if not isinstance(given, (str, os.PathLike)) or not isinstance(text := os.fspath(given), str):
        raise InvalidRequestError(f"a path is text or a pathlib.Path, not {given!r}")
    if "\0" in text:
        raise InvalidRequestError(f"{text!r} cannot be a path: a path has no NUL character")
    if not text:
        raise InvalidRequestError("an empty path names no directory; the current one is '.'")
    return text
