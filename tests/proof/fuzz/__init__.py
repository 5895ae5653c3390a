"""Fuzzing: whatever the bytes are, the outcome is an answer or a declared error, within bounds of memory and time.

    python -m tests.proof fuzz                                      the corpora, then a second of each target
    python -m tests.proof fuzz --long                               10 minutes of each
    python -m tests.proof.fuzz.child TARGET FILE                    one input again
    python -m tests.proof.fuzz.seeds                                the first inputs of every corpus, from real data
    python -m tests.proof.fuzz.child TARGET NEW OLD                 for as long as one likes: what is new goes to NEW

A target (``target.Target``) is a function of bytes with the errors that it declares and its bounds. Its corpus
lies in ``corpus/`` and is tried without libFuzzer on every machine; what once was a fault stays in
``once_failed/``, under a name that says what it was.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..proof import Row, Scope


def run(scope: Scope) -> Iterator[Row]:
    """Every target; see ``running``."""
    from . import running  # here, because it imports the product, which ``child`` first has to instrument

    yield from running.run(scope)
