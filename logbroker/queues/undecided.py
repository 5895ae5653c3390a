"""What was settled for a transaction that nobody may ever decide. Pure: over ``Rows``.

A transaction accepts messages, or buries them, in the view a moment before its decision is in the journal. The
process may die in between: then the view would call messages done of a transaction that is aborted. So a row says
what was settled, from the same moment on until the decision is written:

    key               value                  says
    u  first offset   msgpack of Undecided   these runs are done if the journal says so, else in hands as before

Whoever finds such a row of a dead process asks the journal.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .rows import NUMBER, Rows, Run, decode_run, encode_run, entry_key

UNDECIDED = b"u"
MAX_ROWS = 10_000


class Undecided(msgspec.Struct, frozen=True, array_like=True):
    """The runs (first offset, and what ``encode_run`` makes of it) that a process has settled."""

    process_id: str
    encoded: list[tuple[int, bytes]]

    @property
    def runs(self) -> list[Run]:
        return [decode_run(entry_key(first), value) for first, value in self.encoded]

    @property
    def first(self) -> int:
        return self.encoded[0][0]


_DECODER = msgspec.msgpack.Decoder(Undecided)


def put(rows: Rows, process_id: str, runs: Sequence[Run]) -> None:
    """Note that the process has settled *runs*, at least one."""
    undecided = Undecided(process_id, [(run.first, encode_run(run)) for run in runs])
    rows.put(_key(undecided.first), msgspec.msgpack.encode(undecided))


def remove(rows: Rows, first: int) -> None:
    """Forget the note that begins with offset *first*."""
    rows.delete(_key(first))


def found(rows: Rows) -> list[Undecided]:
    return [_DECODER.decode(value) for _, value in rows.first(UNDECIDED, UNDECIDED + b"\xff", MAX_ROWS)]


def _key(first: int) -> bytes:
    return UNDECIDED + NUMBER.pack(first)
