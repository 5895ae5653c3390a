"""Servers that break one promise each: ``python broken_servers.py FAULT …`` as ``logbroker``.

fault        what the server does
lossy        answers for every 20th batch of producers that are not idempotent without appending it
forgetful    knows no batch again that it was sent before
dirty        does not tell consumers which transactions were aborted
amnesiac     answers for a group's commits, and writes down about half of them
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable
from typing import Any

from logbroker.cli.app import main
from logbroker.server.handlers import offsets
from logbroker_storage import partition_log
from logbroker_storage.partition_log import AppendResult, PartitionLog
from logbroker_storage.producer_state import Decision, Verdict
from logbroker_storage.producer_state import decide as _decide
from logbroker_storage.record_batch import read_header

_turns = itertools.count(1)
_append = PartitionLog.append
_write = offsets._write


def lossy() -> None:
    def append(log: PartitionLog, batch: bytearray, **options: Any) -> AppendResult:
        header = read_header(batch)
        end_offset = log.offsets().log_end_offset
        base_offset = end_offset - header.record_count
        if header.producer_id >= 0 or base_offset < 0 or next(_turns) % 20:
            return _append(log, batch, **options)
        return AppendResult(base_offset, end_offset - 1, 0, duplicate=False)

    PartitionLog.append = append  # type: ignore[assignment]


def forgetful() -> None:
    def decide(*arguments: Any, **options: Any) -> Decision:
        decision = _decide(*arguments, **options)
        is_known = decision.verdict in (Verdict.DUPLICATE, Verdict.OUT_OF_ORDER)
        return decision._replace(verdict=Verdict.APPEND) if is_known else decision

    vars(partition_log)["decide"] = decide


def dirty() -> None:
    PartitionLog.aborted_transactions = lambda *_: []  # type: ignore[method-assign]


def amnesiac() -> None:
    # By chance: of members that commit in turns it might be one that is always forgotten, and never comes to rest.
    offsets._write = lambda directory, events: _write(directory, events if random.random() < 0.5 else [])


FAULTS: dict[str, Callable[[], None]] = {
    "lossy": lossy,
    "forgetful": forgetful,
    "dirty": dirty,
    "amnesiac": amnesiac,
}

if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    main()
