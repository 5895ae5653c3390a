"""A pytest plugin: a broker on a temporary directory, for the tests of code that uses logbroker.

    def test_orders_are_billed(logbroker_broker):
        logbroker_broker.create_topic("orders")
        ...

Installed with the package (entry point ``pytest11``); nothing has to be imported. ``logbroker_path`` is
the directory, for code that opens it itself (any number of processes and handles may). For a shorter name
put this into ``conftest.py``:

    @pytest.fixture
    def broker(logbroker_broker):
        return logbroker_broker
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

# The engine is imported by the fixtures, not here: pytest loads this module in every run, of any project.
if TYPE_CHECKING:
    from pathlib import Path

    from .broker import Broker

__all__ = ["logbroker_broker", "logbroker_path"]


@pytest.fixture
def logbroker_path(tmp_path: Path) -> str:
    """The path of a data directory that does not exist yet, inside ``tmp_path``."""
    return str(tmp_path / "logbroker-data")


@pytest.fixture
def logbroker_broker(logbroker_path: str) -> Iterator[Broker]:
    """An open ``logbroker.Broker`` on ``logbroker_path``, closed after the test."""
    from .broker import open  # noqa: A004  (logbroker.open)

    with open(logbroker_path) as broker:
        yield broker
