"""``logbroker request``: ask whoever responds to a topic, and print the reply."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .directory import DataOption, open_broker
from .exit_codes import NothingMatched
from .output import JsonOption, json_text, print_json, write

if TYPE_CHECKING:
    from ..request_reply.messages import Reply

STDIN = "-"


def request(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", show_default=False)],
    value: Annotated[
        str, typer.Argument(metavar="[VALUE|-]", help="Default: all of stdin.", show_default=False)
    ] = STDIN,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", help="Seconds to wait for the reply, up to a day.")
    ] = 5.0,
    key: Annotated[str | None, typer.Option("--key", "-k", metavar="K", help="The request's key.")] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="K=V", help="A header of the request; may be given again."),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Send it although nobody responds yet, for who does in time or is not known here."
        ),
    ] = False,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Send VALUE as a request, and print the reply's value as it is (on a terminal with a newline).

    Exits with 3 when no reply came in time, with 1 when nobody responds to TOPIC, or the responder failed.
    """
    from ..request_reply.errors import RequestTimeoutError

    headers = [_header(text) for text in header or []]
    content = sys.stdin.buffer.read() if value == STDIN else os.fsencode(value)
    with open_broker(data, create=wait) as broker:
        try:
            reply = broker.request(
                topic,
                content,
                timeout=timeout,
                key=None if key is None else os.fsencode(key),
                headers=headers,
                if_nobody="wait" if wait else "raise",
            )
        except RequestTimeoutError as error:
            raise NothingMatched(str(error)) from error
    if json:
        print_json(_document(reply))
    else:
        write((reply.value or b"") + b"\n" * sys.stdout.isatty())


def _header(text: str) -> tuple[str, bytes]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"--header {text!r} is not KEY=VALUE")
    return key, os.fsencode(value)


def _document(reply: Reply) -> dict[str, Any]:
    document: dict[str, Any] = {"timestamp": reply.timestamp.isoformat(timespec="milliseconds")}
    document |= _field("key", reply.key, "key_encoding") | _field("value", reply.value, "encoding")
    document["headers"] = [
        {"key": name, **_field("value", value, "encoding")} for name, value in reply.headers
    ]
    return document


def _field(name: str, content: bytes | None, encoding_name: str) -> dict[str, str | None]:
    text, encoding = json_text(content)
    return {name: text} if encoding is None else {name: text, encoding_name: encoding}
