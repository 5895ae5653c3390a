"""``logbroker respond``: answer the requests of a topic with a command, once for each.

The command is the shell's. It reads the request's value from stdin and writes the reply to stdout; an exit code that is
not 0 is a failure, which the requester is told with the last line of stderr. When nobody waits for the reply any more,
it is killed, with all that it has started.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Annotated

import typer

from logbroker_storage.standard_streams import say

from .directory import DataOption, open_broker

if TYPE_CHECKING:
    from ..request_reply.messages import Request

SHELL = "/bin/sh"


class CommandFailed(Exception):  # noqa: N818  (its name is told to the requester)
    """The command gave no answer."""


class _Terminated(BaseException):
    """SIGTERM came."""


def respond(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", show_default=False)],
    command: Annotated[
        str,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            help="What answers: a shell command that reads the request on stdin and writes the reply.",
            show_default=False,
        ),
    ],
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-j", metavar="N", min=1, help="How many may run at a time.")
    ] = 1,
    data: DataOption = None,
) -> None:
    """Answer the requests of TOPIC by running COMMAND, until SIGTERM or Ctrl-C.

    TOPIC is created if it is not there. Any number of these, and of responders in programs, share the requests.
    COMMAND finds the topic in $LOGBROKER_TOPIC and the request's key, if it has one, in $LOGBROKER_KEY.
    """
    _log_one_line_each()
    with open_broker(data, create=True) as broker:
        responder = broker.responder(topic, concurrency=concurrency)(lambda request: _run(command, request))
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            with responder:  # which it leaves behind what is at hand
                say(f"responding to {topic}")
                responder.run()
        except _Terminated:
            pass
        finally:
            signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    raise _Terminated


def _run(command: str, request: Request) -> bytes:
    """The command's output.

    Raises:
        CommandFailed: it failed, or took longer than anybody waits.
    """
    left_s = None if request.reply_by_ms is None else max(0.0, request.reply_by_ms / 1000 - time.time())
    with subprocess.Popen(
        [SHELL, "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(request),
        start_new_session=True,  # a group to kill; and Ctrl-C lets it finish
    ) as process:
        try:
            out, err = process.communicate(request.value or b"", left_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise CommandFailed("it took longer than anybody waits for the reply") from None
    if process.returncode != 0:
        raise CommandFailed(_reason(process.returncode, err))
    return out


def _environment(request: Request) -> dict[bytes, bytes]:
    environment = {**os.environb, b"LOGBROKER_TOPIC": request.topic.encode()}
    environment.pop(b"LOGBROKER_KEY", None)
    if request.key is not None and b"\0" not in request.key:  # the environment has no place for such a byte
        environment[b"LOGBROKER_KEY"] = request.key
    return environment


def _reason(code: int, err: bytes) -> str:
    how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
    lines = err.decode(errors="replace").strip().splitlines()
    return f"{how}: {lines[-1]}" if lines else how


class _OneLine(logging.Formatter):
    def formatException(self, _: object) -> str:  # noqa: N802  (logging's name)
        return ""  # where our own code called the command is of no use to anybody


def _log_one_line_each() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s: %(message)s"))
    logger = logging.getLogger("logbroker")
    logger.handlers = [handler]
    logger.propagate = False
