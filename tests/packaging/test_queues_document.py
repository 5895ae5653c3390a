"""The examples of docs/queues.md run as they stand there, in its order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "queues.md").read_text(encoding="utf-8")
EXAMPLES: list[tuple[str, str]] = re.findall(r"```(python|sh)\n(.*?)```", TEXT, flags=re.DOTALL)
SCRIPTS = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "LOGBROKER_DATA": "data"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all examples run, one after the other."""
    return tmp_path_factory.mktemp("queues")


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs_after_those_before_it(folder: Path, number: int) -> None:
    language, text = EXAMPLES[number]
    command = [sys.executable, "-W", "error", "-c", text] if language == "python" else ["sh", "-euc", text]
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_there_are_examples_of_both_kinds() -> None:
    languages = [language for language, _ in EXAMPLES]
    assert languages.count("python") >= 4
    assert languages.count("sh") >= 4
