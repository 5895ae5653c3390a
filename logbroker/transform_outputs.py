"""What a function of a record may return: bytes (which keep the record's key), a message, several, or None."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from logbroker_storage.errors import InvalidRequestError

from .records import Message, Record

Output = bytes | Message | Iterable[bytes | Message] | None
Function = Callable[[Record], Output]


def messages_of(source: Record, output: Output) -> list[Message]:
    """The messages that a function has made of *source*.

    Raises:
        InvalidRequestError: it returned something else.
    """
    if output is None:
        return []
    if not isinstance(output, (bytes, Message, str, dict)) and isinstance(output, Iterable):
        return [_message_of(source, one) for one in output]
    return [_message_of(source, output)]


def _message_of(source: Record, output: object) -> Message:
    if isinstance(output, bytes):
        return Message(output, source.key)
    if isinstance(output, Message):
        return output
    raise InvalidRequestError(
        f"a transform's function returns bytes, a Message, an iterable of them, or None, not {output!r:.100}"
    )
