"""The proof: the scripts, recoveries, and random programs until there are enough states."""

from __future__ import annotations

from collections.abc import Iterator

from ..proof import Row, Scope
from .exploration import Explorer, record
from .workloads import SCRIPTS, recovery


def run(scope: Scope) -> Iterator[Row]:
    explorer = Explorer(scope.folder, scope.seed)
    for script in SCRIPTS:
        recording = record(script.__name__, script, scope.folder)
        samples = explorer.explore(recording, 500, samples=3)
        for sample in samples:
            name = f"recovery of {recording.name} at {sample.operation}"
            again = record(name, recovery, scope.folder, tree=sample.tree, promises=sample.promises)
            explorer.explore(again, 100)
        yield Row(f"power cuts in {script.__name__}", len(explorer.digests), "states", scope.seed)
