"""The standard streams of a command, which somebody may have started without one, or with one that nobody reads."""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> None:
    """A stream that we were started without goes nowhere; its number must not become that of a log file."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))


def say(message: str) -> None:
    """A remark, on stderr; dropped where nobody can read it, for it must not end the work that it is about."""
    try:
        sys.stderr.write(f"{message}\n")
    except OSError:
        pass
