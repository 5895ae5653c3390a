"""The standard streams of a process that somebody started without one of them."""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> None:
    """A stream that we were started without goes nowhere; its number must not become that of a log file."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))
