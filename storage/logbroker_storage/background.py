"""What the threads that work in the background do with an error: they log it and go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import LogbrokerError


@contextmanager
def going_on(logger: logging.Logger, what: str) -> Iterator[None]:
    """Log *what* with the error that ends the block, if one does; with a traceback where it is none of ours.

    Errors of any kind: what the thread does next must not wait for a mistake in what it does now.
    """
    try:
        yield
    except Exception as error:
        is_expected = isinstance(error, (LogbrokerError, OSError))
        logger.warning("%s: %s", what, error, exc_info=not is_expected)
