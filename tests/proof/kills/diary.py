"""A worker's diary: what it was promised, written so that its own death cannot take it back.

One file a worker, outside of the data directory, only appended to, one write a note. A write that the kill
cuts short leaves a last line without its end, which was never noted: whoever reads takes whole lines only.
"""

from __future__ import annotations

import os


class Diary:
    """The worker's side."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, *lines: str) -> None:
        os.write(self._fd, "".join(f"{line}\n" for line in lines).encode())


class DiaryReader:
    """The other side: what is new since the last look."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._position = 0

    def news(self) -> list[list[str]]:
        """The fields of each whole line that was added."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return []  # killed before it could begin one
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        return [line.split() for line in whole.decode().splitlines()]
