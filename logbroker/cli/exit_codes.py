"""The exit codes of every command; ``app`` says when each is used."""

from __future__ import annotations

FAILED = 1
USAGE = 2
NOTHING = 3
INTERRUPTED = 130


class NothingMatched(Exception):  # noqa: N818  (no error: an outcome with an exit code of its own)
    """The command ran, and there was nothing for it to do or to show."""
