"""Disks, limits and clocks that fail, bounded; and that each kind of mistake would be noticed.

See ``tests.proof.faults``; those of a server are in ``test_faults_served``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from . import faults
from .faults.every_call import Fault, Tries
from .faults.mistakes import AcknowledgesWhatWasNotWritten, RepeatsAFailedSync
from .faults.stories import STORIES, Story
from .faults.sync_ledger import SyncLedger
from .proof import Proof, Row

PRODUCING, READING = (story for story in STORIES if story.name in ("producing", "reading"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_fault_makes_an_acknowledgement_false_or_stops_writes_for_ever(
    prove: Callable[[Proof], list[Row]],
) -> None:
    prove(faults.run_embedded)


# What would be noticed --------------------------------------------------------------------------------------


class LeavesWhatItRefuses(SyncLedger):
    def truncate(self, fd: int, size: int) -> None:
        pass


class RaisesWhatTheSystemRaised(SyncLedger):
    def pread(self, fd: int, size: int, position: int) -> bytes:
        try:
            return super().pread(fd, size, position)
        except OSError as error:
            raise OSError(error.errno, error.strerror) from None


class KeepsDescriptors(SyncLedger):
    def close(self, fd: int) -> None:
        if not self.hits:
            super().close(fd)


@pytest.mark.parametrize(
    ("story", "make_files", "fault", "noticed"),
    [
        (PRODUCING, AcknowledgesWhatWasNotWritten, Fault("", errno.EIO), "lost|damaged"),
        (PRODUCING, RepeatsAFailedSync, Fault("", errno.EIO), "repeated after they had failed"),
        # What is left has the next record's sequence, which is taken for its duplicate.
        (
            PRODUCING,
            LeavesWhatItRefuses,
            Fault("", errno.EIO, written=1.0),
            "although it was refused|and lost",
        ),
        (READING, RaisesWhatTheSystemRaised, Fault("", errno.EIO), "no error of a disk"),
        (READING, KeepsDescriptors, Fault("", errno.EIO), "descriptors are left open"),
    ],
)
def test_a_mistake_of_each_kind_is_noticed(
    tmp_path: Path, story: Story, make_files: type[SyncLedger], fault: Fault, noticed: str
) -> None:
    with pytest.raises(AssertionError, match=noticed):
        Tries(str(tmp_path), story, fault, make_files=make_files).run(1, 1)
