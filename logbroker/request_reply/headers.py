"""The headers of requests and replies, for clients of any kind to write and to read.

    of a request     value                          meaning
    correlation-id   any bytes                      comes back in the reply, as it is
    reply-to         a topic's name                 where the reply is wanted; without it none is sent
    reply-by         milliseconds since 1970 UTC    in decimal digits: later a reply is of no use to anybody

    of a reply            value                     meaning
    correlation-id        the request's             which request this answers
    reply-error           text                      the responder failed, and why; the value says nothing then
    reply-error-type      a name                    the kind of failure, as the responder's language calls it
    reply-error-traceback text                      where it failed, if the responder tells that

Text is UTF-8. A value that cannot be read counts as absent, and of several of one name the first sound one counts.
What the broker itself needs to know of the deadline stands in ``logbroker.ttl.ms`` beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

CORRELATION_ID = "correlation-id"
REPLY_TO = "reply-to"
REPLY_BY = "reply-by"
ERROR = "reply-error"
ERROR_TYPE = "reply-error-type"
ERROR_TRACEBACK = "reply-error-traceback"

REQUEST_HEADERS = frozenset((CORRELATION_ID, REPLY_TO, REPLY_BY))
REPLY_HEADERS = frozenset((CORRELATION_ID, ERROR, ERROR_TYPE, ERROR_TRACEBACK))

MAX_ERROR_CHARACTERS = 2_000
MAX_TRACEBACK_CHARACTERS = 20_000
MAX_DIGITS = 14  # of a time: the year 5138

HeaderPair = tuple[str, bytes | None]
Value = TypeVar("Value")


class RequestHeaders(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says of the reply that it wants."""

    correlation_id: bytes | None = None
    reply_to: str | None = None
    reply_by_ms: int | None = None


class Failure(msgspec.Struct, frozen=True):
    """Why there is no answer; ``traceback`` is None unless the responder tells it."""

    error: str
    error_type: str
    traceback: str | None = None


class ReplyHeaders(msgspec.Struct, frozen=True, kw_only=True):
    """Which request a reply answers, and what went wrong, if anything did."""

    correlation_id: bytes | None = None
    failure: Failure | None = None


def encode_request(headers: RequestHeaders) -> list[HeaderPair]:
    """The pairs to store."""
    pairs: list[HeaderPair] = []
    if headers.correlation_id is not None:
        pairs.append((CORRELATION_ID, headers.correlation_id))
    if headers.reply_to is not None:
        pairs.append((REPLY_TO, headers.reply_to.encode()))
    if headers.reply_by_ms is not None:
        pairs.append((REPLY_BY, b"%d" % headers.reply_by_ms))
    return pairs


def decode_request(pairs: Iterable[HeaderPair]) -> RequestHeaders:
    """What *pairs*, which may be anybody's, say of the wanted reply."""
    pairs = tuple(pairs)
    return RequestHeaders(
        correlation_id=_first(pairs, CORRELATION_ID, bytes),
        reply_to=_first(pairs, REPLY_TO, _text),
        reply_by_ms=_first(pairs, REPLY_BY, _time_ms),
    )


def encode_reply(headers: ReplyHeaders) -> list[HeaderPair]:
    """The pairs to store; long texts are cut."""
    pairs: list[HeaderPair] = []
    if headers.correlation_id is not None:
        pairs.append((CORRELATION_ID, headers.correlation_id))
    failure = headers.failure
    if failure is not None:
        pairs.append((ERROR, _bytes(failure.error[:MAX_ERROR_CHARACTERS])))
        pairs.append((ERROR_TYPE, _bytes(failure.error_type)))
        if failure.traceback is not None:
            # Its end is where it failed.
            pairs.append((ERROR_TRACEBACK, _bytes(failure.traceback[-MAX_TRACEBACK_CHARACTERS:])))
    return pairs


def decode_reply(pairs: Iterable[HeaderPair]) -> ReplyHeaders:
    """What *pairs*, which may be anybody's, say of the request that they answer."""
    pairs = tuple(pairs)
    error = _first(pairs, ERROR, _lenient_text)
    failure = None
    if error is not None:
        error_type = _first(pairs, ERROR_TYPE, _lenient_text) or ""
        failure = Failure(error, error_type, _first(pairs, ERROR_TRACEBACK, _lenient_text))
    return ReplyHeaders(correlation_id=_first(pairs, CORRELATION_ID, bytes), failure=failure)


def without(pairs: Iterable[HeaderPair], names: frozenset[str]) -> list[HeaderPair]:
    """*pairs* but those of *names*."""
    return [pair for pair in pairs if pair[0] not in names]


def _first(pairs: tuple[HeaderPair, ...], wanted: str, read: Callable[[bytes], Value | None]) -> Value | None:
    for name, content in pairs:
        if name == wanted and content is not None:
            value = read(content)
            if value is not None:
                return value
    return None


def _text(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _lenient_text(content: bytes) -> str:
    return content.decode(errors="replace")  # half an explanation is better than none


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")  # an exception's text may hold what has no UTF-8 form


def _time_ms(content: bytes) -> int | None:
    return int(content) if content.isdigit() and len(content) <= MAX_DIGITS else None
