"""Bytes into lines: blocks in, lists of lines out, one block's lines at a time.

A line is what stands before a newline, without it; a carriage return stays. What follows the last newline
is a line too, if it is not empty. A line that spans blocks is joined once, when its end is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator


class LineTooLong(Exception):  # noqa: N818  (the caller says which line of what)
    """A line has more than *max_bytes* bytes, and its end is not in sight."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        super().__init__(f"a line is longer than {max_bytes} bytes")


def lines_of(read: Callable[[], bytes], *, max_line_bytes: int) -> Iterator[list[bytes]]:
    """The lines of what *read* returns, until that is empty; never an empty list.

    At most *max_line_bytes* and one block are held back for a line whose end is missing.

    Raises:
        LineTooLong: the line behind those that were given out is longer.
    """
    held: list[bytes] = []
    held_bytes = 0
    while block := read():
        lines = block.split(b"\n")
        rest = lines.pop()
        if lines:
            if held:
                lines[0] = b"".join([*held, lines[0]])
                held = []
                held_bytes = 0
            yield lines
        if rest:
            held.append(rest)
            held_bytes += len(rest)
            if held_bytes > max_line_bytes:
                raise LineTooLong(max_line_bytes)
    if held:
        yield [b"".join(held)]
