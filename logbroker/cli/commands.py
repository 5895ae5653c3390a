"""The tree of commands.

Modules of the engine are imported inside the commands, so that ``--help`` does not load them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from . import (
    bench,
    group,
    inspect,
    produce,
    queue,
    quickstart,
    request,
    respond,
    route,
    serve,
    subscription,
    tail,
    topic,
    transform,
)
from .command_group import HELP_NAMES, help_if_alone
from .directory import DataOption

app = typer.Typer(
    name="logbroker",
    help="A durable log broker on a plain directory: topics, producers, consumers and groups, with no server.",
    epilog="Exit codes: 0 done, 1 an error or damage found, 2 wrong usage, 3 timed out or nothing matched, "
    "130 interrupted.",
    invoke_without_command=True,
    rich_markup_mode=None,  # importing rich would double the time that --help takes
    context_settings=HELP_NAMES,
)


def _show_version(value: bool) -> None:
    if value:
        import logbroker

        typer.echo(f"logbroker {logbroker.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    data: DataOption = None,  # noqa: ARG001  (read by nearest_data)
    version: Annotated[  # noqa: ARG001  (its callback does the work)
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    help_if_alone(context)


app.add_typer(topic.app, name="topic")
app.command("produce")(produce.produce)
app.command("tail")(tail.tail)
app.add_typer(group.app, name="group")
app.add_typer(subscription.app, name="subscription")
app.add_typer(queue.app, name="queue")
app.add_typer(route.app, name="route")
app.add_typer(transform.app, name="transform")
app.command("request")(request.request)
app.command("respond")(respond.respond)
app.command("serve")(serve.serve)
app.command("inspect", context_settings=inspect.CONTEXT, add_help_option=False)(inspect.inspect)
app.command("bench")(bench.bench)
app.command("quickstart")(quickstart.quickstart)
