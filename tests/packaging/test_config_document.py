"""docs/config.md says what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_configuration_reference_is_the_one_that_the_code_makes() -> None:
    made = runpy.run_path(str(DOCS / "make_config.py"))["TEXT"]
    assert (DOCS / "config.md").read_text(encoding="utf-8") == made
