"""What a responder is given, what a requester gets back, and what may be answered."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import msgspec

from logbroker_storage.errors import InvalidRequestError
from logbroker_storage.record import Record

from ..exception_text import text_of
from ..of_record import OfRecord
from ..records import EPOCH, MILLISECOND, Message, without_reserved_headers
from .headers import REPLY_HEADERS, REQUEST_HEADERS, Failure, decode_request, without

Answer = bytes | Message | None


class Request(OfRecord, msgspec.Struct, frozen=True, kw_only=True):
    """A request as its responder sees it; the fields of its record are its own.

    Attributes:
        record: the request as it was sent, without the headers that say what follows.
        correlation_id: what the reply will carry; None when none was given.
        reply_to: the topic that the reply goes to; None when none is wanted.
        reply_by_ms: when nobody waits for the reply any more, in milliseconds since 1970 UTC; None: unknown.
        delivery_count: 1, or more when an earlier responder died over it.
    """

    record: Record
    correlation_id: bytes | None
    reply_to: str | None
    reply_by_ms: int | None
    delivery_count: int

    @property
    def topic(self) -> str:
        return self.record.topic

    @property
    def reply_by(self) -> datetime.datetime | None:
        """``reply_by_ms`` as an aware UTC datetime."""
        return None if self.reply_by_ms is None else EPOCH + self.reply_by_ms * MILLISECOND


class Reply(OfRecord, msgspec.Struct, frozen=True):
    """The answer to a request: value, key and headers as the responder gave them."""

    record: Record


def read_request(record: Record, delivery_count: int) -> Request:
    """A record of a request topic as the request that it is."""
    asked = decode_request(record.header_pairs)
    return Request(
        record=_with_own_headers(record, REQUEST_HEADERS),
        correlation_id=asked.correlation_id,
        reply_to=asked.reply_to,
        reply_by_ms=asked.reply_by_ms,
        delivery_count=delivery_count,
    )


def read_reply(record: Record) -> Reply:
    """A record of a reply topic as the reply that it is."""
    return Reply(_with_own_headers(without_reserved_headers(record), REPLY_HEADERS))


def _with_own_headers(record: Record, others: frozenset[str]) -> Record:
    return msgspec.structs.replace(record, header_pairs=tuple(without(record.header_pairs, others)))


def as_message(answer: object) -> Message:
    """What a responder's function has returned, as a message.

    Raises:
        InvalidRequestError: it is none that can be a reply.
    """
    if answer is None or isinstance(answer, bytes):
        return Message(answer)
    if not isinstance(answer, Message):
        hint = "; encode it first: text.encode()" if isinstance(answer, str) else ""
        raise InvalidRequestError(
            f"a responder's function returns bytes, a Message or None, not {type(answer).__name__}{hint}"
        )
    if answer != Message(answer.value, key=answer.key, headers=answer.headers):
        raise InvalidRequestError("a reply has a value, a key and headers; a Message with more cannot be one")
    return answer


def failure_of(error: BaseException, *, trace: Callable[[BaseException], str] | None) -> Failure:
    """What is told of an exception in a responder's function."""
    return Failure(
        text_of(error) or type(error).__name__, type(error).__name__, None if trace is None else trace(error)
    )
