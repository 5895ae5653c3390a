"""``logbroker request``: ask whoever responds to a topic, and print the reply."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .directory import DataOption, open_broker
from .exit_codes import CommandFailed, NothingMatched
from .headers import HeaderOption, parse_headers
from .output import JsonOption, content_as_json, print_json, write

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
    key: Annotated[str | None, typer.Option("--key", "-k", metavar="KEY", help="The request's key.")] = None,
    header: HeaderOption = None,
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
    from ..request_reply.errors import NoRespondersError, RequestTimeoutError

    content = sys.stdin.buffer.read() if value == STDIN else os.fsencode(value)
    with open_broker(data, create=wait) as broker:
        try:
            reply = broker.request(
                topic,
                content,
                timeout=timeout,
                key=None if key is None else os.fsencode(key),
                headers=parse_headers(header),
                if_nobody="wait" if wait else "raise",
            )
        except NoRespondersError as error:
            raise CommandFailed(
                f"{error.reason}: start a responder (`logbroker respond`), or give --wait to send it all the same"
            ) from error
        except RequestTimeoutError as error:
            raise NothingMatched(f"{error.reason}. Give it a longer --timeout, or more responders") from error
    if json:
        print_json(_document(reply))
    else:
        write((reply.value or b"") + b"\n" * sys.stdout.isatty())


def _document(reply: Reply) -> dict[str, Any]:
    document: dict[str, Any] = {"timestamp": reply.timestamp.isoformat(timespec="milliseconds")}
    return document | content_as_json(reply.key, reply.value, reply.headers)
