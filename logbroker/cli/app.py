"""``logbroker``: the commands, and how what goes wrong becomes one line on stderr and an exit code.

Modules of the engine are imported inside the commands, so that ``--help`` does not load them.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .command_group import HELP_NAMES, help_if_alone
from .directory import DataOption
from .exit_codes import FAILED, INTERRUPTED, NOTHING, USAGE, CommandFailed, NothingMatched

NAME = "logbroker"
COMPLETION_VARIABLE = "_LOGBROKER_COMPLETE"
VARIABLE_FOR_TRACEBACKS = "LOGBROKER_DEBUG"

app = typer.Typer(
    name=NAME,
    help="A durable log broker on a plain directory: topics, producers, consumers and groups, with no server.",
    invoke_without_command=True,
    rich_markup_mode=None,  # importing rich would double the time that --help takes
    context_settings=HELP_NAMES,
)

_UsageError = typer.BadParameter.__base__  # typer has moved click's exceptions around; this one is in both
assert _UsageError is not None
_ClickError = _UsageError.__base__
assert _ClickError is not None


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


def _add_commands() -> None:
    from . import group, inspect, produce, quickstart, tail, topic

    app.add_typer(topic.app, name="topic")
    app.command("produce")(produce.produce)
    app.command("tail")(tail.tail)
    app.add_typer(group.app, name="group")
    app.command("inspect", context_settings=inspect.CONTEXT, add_help_option=False)(inspect.inspect)
    app.command("quickstart")(quickstart.quickstart)


_add_commands()


def run(arguments: list[str] | None = None) -> int:
    """Run one command line (default: the process's); the exit code."""
    try:
        return _invoke(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:
        # The reader of our output has what it wanted. Point stdout elsewhere, or Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except NothingMatched as nothing:
        return _fail(str(nothing), NOTHING)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        if VARIABLE_FOR_TRACEBACKS in os.environ:
            raise
        return _fail_with(error)


def _invoke(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    if COMPLETION_VARIABLE in os.environ:
        command.main(prog_name=NAME)  # answers the shell, and exits
    try:
        # Not command.main(), which has its own idea of what a closed pipe and an error should do.
        with command.make_context(NAME, list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    finally:
        sys.stdout.flush()
    return 0


def _fail_with(error: Exception) -> int:
    from logbroker_storage.errors import LogbrokerError

    if isinstance(error, _ClickError):  # type: ignore[arg-type]
        is_usage = isinstance(error, _UsageError)  # type: ignore[arg-type]
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        return _fail(f"{message} (see --help)", USAGE) if is_usage else _fail(message, FAILED)
    if isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename}: "
        return _fail(f"{where}{error.strerror or error}", FAILED)
    if isinstance(error, (LogbrokerError, CommandFailed)):
        return _fail(str(error), FAILED)
    return _fail(
        f"internal error: {type(error).__name__}: {error} (set {VARIABLE_FOR_TRACEBACKS}=1 to see where)",
        FAILED,
    )


def _fail(message: str, code: int) -> int:
    print(f"logbroker: {' '.join(message.split())}", file=sys.stderr)
    return code


def main() -> None:
    """The entry point."""
    sys.exit(run())


if __name__ == "__main__":
    main()
