"""What exceptions of users' functions say. Whoever asks must not fail in turn: a record is waiting for it."""

from __future__ import annotations


def text_of(error: BaseException) -> str:
    """``str(error)``, or what is wrong with that."""
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001  (a method of the user's)
        return f"(its text cannot be had: {type(failure).__name__})"


def named(error: BaseException) -> str:
    """The type with the text, if there is one."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
