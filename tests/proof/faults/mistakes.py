"""What a product that is mistaken would do to its files: to show that the proofs would notice."""

from __future__ import annotations

from logbroker_storage.files import Buffer

from .sync_ledger import SyncLedger


class AcknowledgesWhatWasNotWritten(SyncLedger):
    def pwrite(self, fd: int, data: Buffer, position: int) -> None:
        try:
            super().pwrite(fd, data, position)
        except OSError:
            pass


class RepeatsAFailedSync(SyncLedger):
    def fdatasync(self, fd: int) -> None:
        try:
            super().fdatasync(fd)
        except OSError:
            super().fdatasync(fd)
