"""``logbroker``: runs a command, and turns what goes wrong into one line on stderr and an exit code.

Nothing heavy is imported before ``run`` watches for Ctrl-C: most of a short command's life is imports.
"""

from __future__ import annotations

import os
import sys

from .exit_codes import FAILED, INTERRUPTED, NOTHING, USAGE, CommandFailed, NothingMatched

NAME = "logbroker"
COMPLETION_VARIABLE = "_LOGBROKER_COMPLETE"
VARIABLE_FOR_TRACEBACKS = "LOGBROKER_DEBUG"


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
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if VARIABLE_FOR_TRACEBACKS in os.environ:
            raise
        return _fail_with(error)


def _invoke(arguments: list[str]) -> int:
    import typer

    from .commands import app

    command = typer.main.get_command(app)
    if COMPLETION_VARIABLE in os.environ:
        command.main(prog_name=NAME)  # answers the shell, and exits
    try:
        # Not command.main(), which has its own idea of what a closed pipe and an error should do.
        with command.make_context(NAME, list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return INTERRUPTED
    finally:
        sys.stdout.flush()
    return 0


def _fail_with(error: Exception) -> int:
    import typer

    from logbroker_storage.errors import LogbrokerError

    usage_error = typer.BadParameter.__base__  # typer has moved click's exceptions; this one is in both
    assert usage_error is not None
    click_error = usage_error.__base__
    assert click_error is not None
    if isinstance(error, click_error):
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        is_usage = isinstance(error, usage_error)
        return _fail(f"{message} (see --help)", USAGE) if is_usage else _fail(message, FAILED)
    if isinstance(error, OSError) and not isinstance(error, LogbrokerError):
        where = "" if error.filename is None else f"{error.filename}: "
        return _fail(f"{where}{error.strerror or error}", FAILED)
    if isinstance(error, (LogbrokerError, CommandFailed)):
        return _fail(str(error), FAILED)
    return _fail(
        f"internal error: {type(error).__name__}: {error} (set {VARIABLE_FOR_TRACEBACKS}=1 to see where)",
        FAILED,
    )


def _fail(message: str, code: int) -> int:
    from logbroker_storage.standard_streams import say

    say(f"{NAME}: {' '.join(message.split())}")
    return code


def main() -> None:
    """The entry point."""
    from logbroker_storage.standard_streams import open_closed_streams

    open_closed_streams()
    sys.exit(run())


if __name__ == "__main__":
    main()
