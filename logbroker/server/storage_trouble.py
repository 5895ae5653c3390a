"""What the disk refuses and what is damaged, in the server's log: whoever runs it has to mend that.

A client is told a code, mostly without a word, and asks again some ten times a second. So one line is written of each
kind of error in ``PAUSE_S``, with how many there were since the last.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from logbroker_storage.errors import (
    CorruptionError,
    FileSystemError,
    LogbrokerError,
    StorageFailedError,
    ViewError,
    WriteFailedError,
)

logger = logging.getLogger("logbroker.server")

PAUSE_S = 30.0
TROUBLE = (CorruptionError, FileSystemError, StorageFailedError, ViewError, WriteFailedError)


class StorageTrouble:
    """What was told when. Any thread may tell; two at once may write a line too many."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._told_s: dict[type[LogbrokerError], float] = {}
        self._untold: dict[type[LogbrokerError], int] = {}

    def tell(self, error: LogbrokerError) -> None:
        """Log *error*, which a client is about to be told, if it is the storage's and not told lately."""
        if not isinstance(error, TROUBLE):
            return
        kind, now_s = type(error), self._monotonic()
        told_s = self._told_s.get(kind)
        if told_s is not None and now_s - told_s < PAUSE_S:
            self._untold[kind] = self._untold.get(kind, 0) + 1
            return
        self._told_s[kind] = now_s
        untold = self._untold.pop(kind, 0)
        more = f" (and {untold} more of its kind since the last such line)" if untold else ""
        logger.warning("a client is refused: %s%s", error, more)
