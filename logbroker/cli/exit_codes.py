"""The exit codes of every command.

code  when
0     done; also when the reader of our output went away
1     an error of the broker or the system (one line on stderr); damage found
2     wrong usage
3     timed out, or nothing matched
130   interrupted
"""

from __future__ import annotations

FAILED = 1
USAGE = 2
NOTHING = 3
INTERRUPTED = 130


class CommandFailed(Exception):  # noqa: N818  (an outcome with an exit code, beside the library's errors)
    """The command could not do what it was asked to; exit code 1."""


class NothingMatched(Exception):  # noqa: N818  (no error: an outcome with an exit code of its own)
    """The command ran, and there was nothing for it to show, or not in time; exit code 3."""
