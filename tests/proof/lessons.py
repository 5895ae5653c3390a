"""The regression tests that are named after faults of Apache Kafka (``tests/lessons``), as a proof.

They are ordinary tests, which CI runs where they are; here they are counted for the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .proof import Row, Scope

LESSONS = Path(__file__).parents[1] / "lessons"


class _Count:
    """A plugin of pytest that counts the tests that passed."""

    def __init__(self) -> None:
        self.passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed


def run(scope: Scope) -> Iterator[Row]:
    """Each of the tests once; nothing in them is random."""
    count = _Count()
    code = pytest.main(["-q", "-p", "no:cacheprovider", str(LESSONS)], plugins=[count])
    assert code == pytest.ExitCode.OK, f"pytest ended with {code!r}"
    yield Row("faults that Kafka had", count.passed, "tests")
