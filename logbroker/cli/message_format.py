"""How ``queue receive`` prints messages: as ``tail`` prints records, and two fields more.

    %d   how often it was delivered, this time included
    %r   the receipt handle, by which another process settles it

Where messages are held, their handles stand first in a line, and JSON has them too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import msgspec
import typer

from logbroker_storage.record import Record

from ..queues.consumer import QueueMessage
from .record_format import (
    FIELDS,
    TAB_SEPARATED,
    Field,
    formatter_with,
    record_document,
    terminal_lines,
    values_with_newlines,
)

MessageFormatter = Callable[[Sequence[QueueMessage]], bytes]

_json = msgspec.json.Encoder()


def message_formatter(format: str | None, *, value_only: bool, json: bool, is_held: bool) -> MessageFormatter:
    """What the options ask for.

    Raises:
        typer.BadParameter: they exclude each other, or the format is not understood.
    """
    if sum((format is not None, value_only, json)) > 1:
        raise typer.BadParameter("choose one of --format, --value-only and --json")
    if value_only and is_held:
        raise typer.BadParameter(r"--value-only leaves out the receipt handles; use --format '%r %v\n'")
    if json:
        return _json_lines_with_handles if is_held else _json_lines
    if value_only:
        return lambda messages: values_with_newlines([message.record for message in messages])
    if format is None and sys.stdout.isatty():
        return _terminal_lines_with_handles if is_held else _terminal_lines
    default = rf"%r\t{TAB_SEPARATED}" if is_held else TAB_SEPARATED
    return formatter_with(_FIELDS, default if format is None else format)


def _of_records(field: Field[Record]) -> Field[QueueMessage]:
    return Field(field.conversion, lambda messages: field.column([message.record for message in messages]))


_FIELDS: dict[str, Field[QueueMessage]] = {
    **{name: _of_records(field) for name, field in FIELDS.items()},
    "d": Field(b"%d", lambda messages: [message.delivery_count for message in messages]),
    "r": Field(b"%b", lambda messages: [message.handle.encode() for message in messages]),
}


def _json_lines(messages: Sequence[QueueMessage]) -> bytes:
    return _json.encode_lines(
        [
            {**record_document(message.record), "delivery_count": message.delivery_count}
            for message in messages
        ]
    )


def _json_lines_with_handles(messages: Sequence[QueueMessage]) -> bytes:
    return _json.encode_lines(
        [
            {
                "handle": message.handle,
                **record_document(message.record),
                "delivery_count": message.delivery_count,
            }
            for message in messages
        ]
    )


def _terminal_lines(messages: Sequence[QueueMessage]) -> bytes:
    return terminal_lines([message.record for message in messages])


def _terminal_lines_with_handles(messages: Sequence[QueueMessage]) -> bytes:
    return b"".join(message.handle.encode() + b"  " + _terminal_lines([message]) for message in messages)
