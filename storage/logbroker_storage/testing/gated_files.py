"""A disk whose syncs last as long as the test wants.

files = GatedFiles()
files.gate.clear()          from now on syncs wait
files.waiting.wait(10)      one has come, since ``waiting`` was last cleared
files.gate.set()            they go on
"""

from __future__ import annotations

import threading

from ..files import OsFiles

PATIENCE_S = 30.0


class GatedFiles(OsFiles):
    """``fdatasync`` waits for ``gate``; ``begun`` and ``done`` count them."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.begun = 0
        self.done = 0

    def fdatasync(self, fd: int) -> None:
        self.begun += 1
        self.waiting.set()
        assert self.gate.wait(PATIENCE_S), "nobody has opened the gate"
        super().fdatasync(fd)
        self.done += 1
