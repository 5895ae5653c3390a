"""What a fuzz target is: a function of bytes that returns, or raises one of the errors it declares."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..proof import new_folder

MIB = 1 << 20
SCRATCH = (
    "LOGBROKER_FUZZ_SCRATCH"  # where the folders of a child lie, which cannot clean up: libFuzzer ends it
)


def scratch_folder() -> Path:
    """An empty directory in memory, for whoever asks to delete."""
    parent = os.environ.get(SCRATCH)
    return new_folder(in_memory=True) if parent is None else Path(tempfile.mkdtemp(dir=parent))


def _nothing() -> None:
    """Most targets leave nothing."""


@dataclass(frozen=True)
class Target:
    """Anything else than returning or a declared error is a fault of the product, and so is taking too much.

    Attributes:
        try_input: one input; asserts what must hold of the outcome.
        declared: the errors that the product's documentation names for it.
        rss_mib: more memory than this is a fault.
        address_mib: of the address space (RLIMIT_AS), where nothing maps files of any size.
        max_bytes: of an input.
        close: gives back what inputs share.
        timeout_s: longer for one input is a fault. On a busy machine what takes milliseconds takes a second.
    """

    try_input: Callable[[bytes], None]
    declared: tuple[type[BaseException], ...]
    rss_mib: int = 512
    address_mib: int | None = 2048
    max_bytes: int = 4096
    timeout_s: int = 20
    close: Callable[[], None] = _nothing

    def run(self, data: bytes) -> None:
        """Try *data*; raises what is not declared."""
        try:
            self.try_input(data)
        except self.declared:
            pass  # an answer, too
