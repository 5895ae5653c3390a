"""What a power cut may leave of the view, which is never synced: nothing, an older one, or a jumble of its pages.

After a power cut the machine has another boot id. So that a copy of a view is what is found after one, it is
given the id of another boot: nothing else tells it from a view that is true.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

from logbroker_storage.errors import ViewError
from logbroker_storage.startup import BOOT_ID
from logbroker_storage.view import View

PAGE_BYTES = 4096
ONE_IN = 16  # states whose view is not simply gone


class Views:
    """Copies of a program's view, and what is put in the place of a state's."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._copies: list[tuple[int, bytes]] = []  # the moment, and the content

    def copy(self, path: str, moment: int) -> None:
        """Keep the view of the data directory *path* as it is at this moment, at which nobody writes to it."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        try:
            shutil.copy(f"{path}/view/data.mdb", self._scratch)
            view = View(str(self._scratch))
        except (FileNotFoundError, ViewError):
            return  # none yet
        with view.write() as transaction:
            view.put_meta_bytes(transaction, BOOT_ID, b"another boot")
        view.close()
        self._copies.append((moment, (self._scratch / "data.mdb").read_bytes()))
        shutil.rmtree(self._scratch)

    def put(self, path: str, moment: int, rng: random.Random) -> str:
        """Leave one of them in the data directory *path*, which *rng* decides on; says which."""
        self.remove(path)
        known = [content for taken, content in self._copies if taken <= moment]
        if not known or rng.randrange(ONE_IN):
            return "gone"
        content = rng.choice(known)
        is_scrambled = rng.random() < 0.5
        if is_scrambled:
            content = scrambled(content, rng.choice(known), rng)
        os.makedirs(f"{path}/view", exist_ok=True)
        with open(f"{path}/view/data.mdb", "wb") as file:
            file.write(content)
        return "scrambled" if is_scrambled else "stale"

    def remove(self, path: str) -> None:
        for name in ("view/data.mdb", "view/lock.mdb", "view.checksum"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}/{name}")


def scrambled(content: bytes, older: bytes, rng: random.Random) -> bytes:
    """*content* with some of its pages missing, torn, or as they were in *older*."""
    found = bytearray(content)
    for position in range(0, len(found), PAGE_BYTES):
        page = slice(position, position + PAGE_BYTES)
        fate = rng.randrange(8)
        if fate == 0:
            found[page] = bytes(len(found[page]))
        elif fate == 1 and len(older) >= position + PAGE_BYTES:
            found[page] = older[page]
        elif fate == 2:
            half = slice(position + 512, position + PAGE_BYTES)
            found[half] = bytes(len(found[half]))
    return bytes(found)
