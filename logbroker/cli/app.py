"""``logbroker``: the commands, and what an exit code means.

    code  when
    0     done; also when the reader of a pipe went away
    1     an error of the broker or the system (one line on stderr); damage found
    2     wrong usage
    3     timed out, or nothing matched
    130   interrupted

Modules of the engine are imported inside the commands, so that ``--help`` does not load them.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .directory import DataOption, remember_directory
from .exit_codes import FAILED, INTERRUPTED, NOTHING, USAGE, NothingMatched

app = typer.Typer(
    name="logbroker",
    help="A durable log broker on a plain directory: topics, producers, consumers and groups, with no server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would double the time that --help takes
    context_settings={"help_option_names": ["-h", "--help"]},
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
    data: DataOption = None,
    version: Annotated[  # noqa: ARG001  (its callback does the work)
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    remember_directory(data)


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
        code = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
    except NothingMatched as error:
        return _fail(str(error), NOTHING)
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has what it wanted. Point stdout elsewhere, or Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  (what is not ours is raised again)
        return _fail_with(error)
    return code if isinstance(code, int) else 0


def _fail_with(error: Exception) -> int:
    if isinstance(error, _UsageError):  # type: ignore[arg-type]
        return _fail(f"{error.format_message()} (see --help)", USAGE)  # type: ignore[attr-defined]
    if isinstance(error, _ClickError):  # type: ignore[arg-type]
        return _fail(error.format_message(), FAILED)  # type: ignore[attr-defined]
    from logbroker_storage.errors import LogbrokerError

    if isinstance(error, (LogbrokerError, OSError)):
        return _fail(str(error), FAILED)
    raise error


def _fail(message: str, code: int) -> int:
    print(f"logbroker: {' '.join(message.split())}", file=sys.stderr)
    return code


def main() -> None:
    """The entry point."""
    sys.exit(run())


if __name__ == "__main__":
    main()
