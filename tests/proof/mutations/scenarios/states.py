"""The crash-state proof, as far as it looks at the states that tell most."""

from __future__ import annotations

from pathlib import Path

from tests.proof.crash_states.quick import quick


def crash_states(folder: Path) -> None:
    """No state that a power cut may leave of its programs breaks a promise."""
    quick(folder)
