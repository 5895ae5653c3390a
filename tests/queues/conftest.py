"""The desk that every test of queues works at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .desk import QueueDesk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[QueueDesk]:
    """A broker whose clock stands at noon until it is advanced."""
    desk = QueueDesk(tmp_path / "data")
    yield desk
    desk.close()
