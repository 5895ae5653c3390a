"""Decoded values as the bytes of keys and headers, and as text."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec

from .errors import StepFailed

_encode = msgspec.json.Encoder().encode


def as_bytes(value: Any) -> bytes | None:
    """Text as UTF-8, bytes as they are, None as None, times as ISO 8601, all else as JSON.

    Raises:
        StepFailed: it cannot be written as JSON.
    """
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat().encode()
    try:
        return _encode(value)
    except (TypeError, ValueError) as error:
        raise StepFailed(f"a {type(value).__name__} cannot be written as text: {error}") from None


def as_text(value: Any) -> str:
    """As ``as_bytes``; bytes that are not UTF-8 as base64, and None as nothing."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return msgspec.to_builtins(value)  # type: ignore[no-any-return]
    return (as_bytes(value) or b"").decode()
