"""What the compiled twin of ``record_loops`` is known by. The build runs this file alone, so it imports no other."""

from __future__ import annotations

import hashlib
from pathlib import Path

SOURCES = ("record_loops.py", "record_loops.pxd")


def source_digest(folder: Path) -> str:
    """The digest of the files in *folder* that a twin is built from."""
    content = b"\0".join((folder / name).read_bytes() for name in SOURCES)
    return hashlib.blake2b(content, digest_size=16).hexdigest()
