"""``logbroker queue``: receive, ack, release, reject, extend, stats, and the dead letters."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from logbroker_storage.standard_streams import say

from . import dead_letters
from .command_group import command_group
from .dead_letters import SubscriptionName
from .directory import DataOption, open_broker
from .exit_codes import NothingMatched
from .output import JsonOption, Table, print_json, print_tables, write
from .positions import MOST_RECORDS, duration_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..queues.consumer import Queue
    from .message_format import MessageFormatter

app = command_group("Receive and settle the messages of a queue, and see to its dead letters.")
app.add_typer(dead_letters.app, name="dead-letters")

AT_A_TIME = 100  # messages
LOOK_S = 1.0  # how often one that waits looks whether anybody is still interested
TIMEOUT_S = 1.0  # for the first message, unless --timeout says otherwise

Handles = Annotated[
    list[str],
    typer.Argument(
        metavar="HANDLE…", help="Receipt handles, as `receive --hold` prints them.", show_default=False
    ),
]


@app.command("receive")
def receive(
    subscription: SubscriptionName,
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            metavar="N",
            min=1,
            max=MOST_RECORDS,
            help="At most N messages (1; with -f as many as come).",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new messages as they come.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="S",
            min=0,
            help=f"Wait S seconds for the first ({TIMEOUT_S:g}). With -f: end after S seconds of silence.",
        ),
    ] = None,
    ack: Annotated[
        str,
        typer.Option(
            "--ack", metavar="auto|hold", help="auto: accept each once it was printed; hold: leave it leased."
        ),
    ] = "auto",
    hold: Annotated[
        bool, typer.Option("--hold", help="The same as --ack hold: print a receipt handle, to settle it by.")
    ] = False,
    lease: Annotated[
        str | None,
        typer.Option(
            "--lease", metavar="DURATION", help="How long it stays in this hand.", show_default=False
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="F",
            help=r"As tail's, and %d deliveries, %r receipt handle.",
        ),
    ] = None,
    value_only: Annotated[
        bool, typer.Option("--value-only", help="Only the values, a newline behind each.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    data: DataOption = None,
) -> None:
    """Take messages out of a queue and print them.

    Each is accepted once it was written out; with --hold it stays leased, whatever becomes of this process, until
    `queue ack`, `release` or `reject` settle it by its handle, or its lease ends.

    On a pipe the fields are separated by tabs: the handle (with --hold), topic, partition, offset, timestamp in ms,
    key, value, headers. Exits with 3 when nothing came, or when --timeout ended -f.
    """
    if ack not in ("auto", "hold"):
        raise typer.BadParameter(f"--ack {ack!r}: use auto or hold")
    is_held = hold or ack == "hold"
    from .message_format import message_formatter

    print_messages = message_formatter(format, value_only=value_only, json=json, is_held=is_held)
    lease_s = None if lease is None else duration_of("--lease", lease).total_seconds()
    with (
        open_broker(data) as broker,
        broker.queue(subscription=subscription, lease=lease_s, detached=is_held) as queue,
    ):
        run = _Receiving(queue, print_messages, accepts=not is_held)
        if follow:
            run.follow(number, timeout)
        else:
            run.take(1 if number is None else number, TIMEOUT_S if timeout is None else timeout)
        if not run.received:
            paused = " (it is paused)" if broker.subscription(subscription).is_paused else ""
            raise NothingMatched(f"no message of subscription {subscription!r} came in time{paused}")


class _Receiving:
    """Messages from a queue onto stdout."""

    def __init__(self, queue: Queue, print_messages: MessageFormatter, *, accepts: bool) -> None:
        self.received = 0
        self._queue = queue
        self._format = print_messages
        self._accepts = accepts

    def take(self, number: int, timeout_s: float) -> None:
        """Up to *number* of those that there are; waits for the first."""
        while self.received < number:
            wait_s = 0.0 if self.received else timeout_s
            if not self._some(number - self.received, wait_s):
                return

    def follow(self, number: int | None, timeout_s: float | None) -> None:
        """Those that come, up to *number*.

        Raises:
            NothingMatched: nothing came for *timeout_s*.
        """
        from .tail import reader_check

        has_reader = reader_check(sys.stdout.fileno)
        heard = time.monotonic()
        while number is None or self.received < number:
            left = AT_A_TIME if number is None else number - self.received
            silent_s = time.monotonic() - heard
            if timeout_s is not None and silent_s >= timeout_s:
                raise NothingMatched(f"no message for {timeout_s:g} seconds")
            wait_s = LOOK_S if timeout_s is None else min(LOOK_S, timeout_s - silent_s)
            if self._some(left, wait_s):
                heard = time.monotonic()
            elif not has_reader():
                raise BrokenPipeError

    def _some(self, number: int, wait_s: float) -> int:
        """Receive, print, and accept; how many that were."""
        messages = self._queue.receive_many(min(number, AT_A_TIME), timeout=wait_s)
        if not messages:
            return 0
        try:
            write(self._format(messages))
        except OSError:
            self._queue.give_back(messages)  # nobody has seen them
            raise
        if self._accepts:
            messages.accept()
        self.received += len(messages)
        return len(messages)


# Settling by handle ---------------------------------------------------------------------------------------


@app.command("ack")
def ack(
    subscription: SubscriptionName, handles: Handles, json: JsonOption = False, data: DataOption = None
) -> None:
    """Accept messages that are held: the queue is done with them, durably."""
    _settle(data, subscription, lambda queue: queue.accept(handles))
    _tell("accepted", subscription, handles, json)


@app.command("release")
def release(
    subscription: SubscriptionName,
    handles: Handles,
    delay: Annotated[
        str | None,
        typer.Option("--delay", metavar="DURATION", help="Not before so long from now.", show_default=False),
    ] = None,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Give messages back, to be delivered again to anybody."""
    delay_s = 0.0 if delay is None else duration_of("--delay", delay).total_seconds()
    _settle(data, subscription, lambda queue: queue.release(handles, delay=delay_s))
    _tell("released", subscription, handles, json)


@app.command("reject")
def reject(
    subscription: SubscriptionName,
    handles: Handles,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="What the dead letter says.")
    ] = "rejected",
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Never deliver messages again: they go to the dead letters, if the subscription has any."""
    _settle(data, subscription, lambda queue: queue.reject(handles, reason))
    _tell("rejected", subscription, handles, json)


@app.command("extend")
def extend(
    subscription: SubscriptionName,
    handles: Handles,
    lease: Annotated[
        str | None,
        typer.Option(
            "--lease",
            metavar="DURATION",
            help="From now on (default: the subscription's).",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Hold messages for longer."""
    lease_s = None if lease is None else duration_of("--lease", lease).total_seconds()
    _settle(data, subscription, lambda queue: queue.extend(handles, lease_s))
    _tell("extended", subscription, handles, json)


def _settle(data: str | None, subscription: str, settle: Callable[[Queue], None]) -> None:
    with open_broker(data) as broker, broker.queue(subscription=subscription) as queue:
        settle(queue)


def _tell(done: str, subscription: str, handles: list[str], json: bool) -> None:
    if json:
        print_json({"subscription": subscription, done: handles})
    else:
        say(f"{done} {len(handles)} message{'s' * (len(handles) != 1)}")


# Looking --------------------------------------------------------------------------------------------------


@app.command("stats")
def stats(subscription: SubscriptionName, json: JsonOption = False, data: DataOption = None) -> None:
    """Count the messages of a queue by what is with them, in all partitions together."""
    from logbroker_storage.errors import InvalidRequestError

    with open_broker(data) as broker:
        found = broker.subscription(subscription)
    if found.kind != "queue":
        raise InvalidRequestError(
            f"subscription {subscription!r} is a stream: see `logbroker group describe {subscription}`"
        )
    counts = {
        "lag": found.lag,
        "ready": sum(part.ready for part in found.partitions),
        "in_flight": found.in_flight,
        "delayed": sum(part.delayed for part in found.partitions),
        "waiting": sum(part.waiting for part in found.partitions),
        "rejected": sum(part.rejected for part in found.partitions),
        "dead_letters": found.dead_letters,
        "oldest_age_ms": found.oldest_age_ms,
        "consumers": len({consumer for part in found.partitions for consumer in part.consumers}),
    }
    if json:
        print_json({"name": found.name, "is_paused": found.is_paused, **counts})
        return
    state = "paused" if found.is_paused else "active"
    rows = [("state", state), *((name.replace("_", " "), count) for name, count in counts.items())]
    print_tables(Table("count", ("what", "value"), rows, title=f"queue {subscription}"))
