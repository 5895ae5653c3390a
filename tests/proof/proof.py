"""What a proof is given (``Scope``), and what it reports (``Row``)."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class Scope:
    """How much a proof has to do, and with what."""

    seed: int
    is_long: bool
    folder: Path
    """An empty directory of its own, which is deleted afterwards."""

    def rng(self, name: str) -> random.Random:
        """The randomness of one of the proof's tests: the same for the same seed, whatever else is run."""
        return random.Random(f"{self.seed} {name}")

    def count(self, bounded: int, long: int) -> int:
        """How many cases to try in this run."""
        return long if self.is_long else bounded


@dataclass(frozen=True)
class Row:
    """One line of the table: a test that is through."""

    test: str
    cases: int
    unit: str
    """What was counted, in the plural: "states", "kills"."""
    seed: int | None = None
    """None where nothing is random."""
    skipped: str = ""
    """Why it could not be run on this machine; empty when it was run, and held."""

    @property
    def result(self) -> str:
        return f"SKIPPED: {self.skipped}" if self.skipped else "held"


Proof = Callable[[Scope], Iterator[Row]]


def new_folder(*, in_memory: bool = False) -> Path:
    """A new directory; with *in_memory*, where the machine has a file system in memory, there."""
    parent = SHARED_MEMORY if in_memory and os.access(SHARED_MEMORY, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="logbroker-proof-", dir=parent))


def delete_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # processes that are being killed may still write there
