"""The corpora, on every machine, and a few seconds of new inputs where atheris is there; see ``fuzz``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from .fuzz import run
from .fuzz.running import CORPUS, ONCE_FAILED, fuzz, replay
from .fuzz.target import Target
from .fuzz.targets import TARGETS
from .proof import Proof, Row

MAX_CORPUS_BYTES = 1 << 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_only_declared_errors_come_of_any_bytes(prove: Callable[[Proof], list[Row]]) -> None:
    prove(run)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_a_corpus(name: str) -> None:
    assert any((CORPUS / name).iterdir())


def test_the_corpora_are_small_and_of_targets_that_there_are() -> None:
    folders = [path for folder in (CORPUS, ONCE_FAILED) for path in folder.iterdir()]
    assert {path.name for path in folders} <= set(TARGETS)
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < MAX_CORPUS_BYTES


# The checks ---------------------------------------------------------------------------------------------------


def test_an_error_that_is_not_declared_is_a_fault() -> None:
    def fails(data: bytes) -> None:
        raise KeyError(data)

    Target(fails, (KeyError,)).run(b"x")
    with pytest.raises(KeyError):
        Target(fails, (ValueError,)).run(b"x")
    with pytest.raises(AssertionError, match="fuzz target gzip"):
        replay("gzip", Target(fails, (ValueError,)))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize(
    ("planted", "told"),
    [
        ("raise KeyError(data)", "KeyError"),
        ("bytearray(1 << 33)", "MemoryError"),
        ("import time; time.sleep(60)", "timeout"),
        ("import os; os.abort()", "deadly signal"),
    ],
)
def test_what_a_target_must_not_do_is_found_with_its_input(tmp_path: Path, planted: str, told: str) -> None:
    """In the child, by libFuzzer: an error, memory, time, the death of the process."""
    (tmp_path / "planted.py").write_text(
        "from tests.proof.fuzz import child, target\n"
        "def run(self, data):\n"
        f"    {planted}\n"
        "target.Target.run = run\n"
        "child.main(timeout_s=5)\n"
    )
    with pytest.raises(AssertionError, match=told):
        fuzz("json", tmp_path, seed=1, seconds=2, child=str(tmp_path / "planted.py"))
