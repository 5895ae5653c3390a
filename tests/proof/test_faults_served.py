"""A server whose disk fails, bounded; and that mistakes would be noticed by what its clients are told.

See ``tests.proof.faults``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from . import faults
from .faults.every_call import Fault
from .faults.mistakes import AcknowledgesWhatWasNotWritten, RepeatsAFailedSync
from .faults.served import Served
from .faults.sync_ledger import SyncLedger
from .proof import Proof, Row


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_clients_of_a_server_are_told_the_truth_and_go_on(prove: Callable[[Proof], list[Row]]) -> None:
    prove(faults.run_served)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_files", "fault", "noticed"),
    [
        (AcknowledgesWhatWasNotWritten, Fault("", errno.ENOSPC), "lost|damaged|instead of|Invalid message"),
        (RepeatsAFailedSync, Fault("", errno.EIO), "repeated after they had failed"),
    ],
)
def test_a_mistake_of_each_kind_is_noticed(
    tmp_path: Path, make_files: type[SyncLedger], fault: Fault, noticed: str
) -> None:
    def prove_it() -> None:
        with Served(str(tmp_path / "data"), make_files=make_files) as served:
            served.run(fault)
            served.close()

    with pytest.raises(AssertionError, match=noticed):
        prove_it()
