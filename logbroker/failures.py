"""What failed of a producer's records, and whether anybody was told.

    a record            its failure
    of which a receipt  is the receipt's; if nobody asks that one, the next ``flush`` or ``close`` raises it
      is kept
    sent and forgotten  is logged and counted

Guard: the producer's lock for everything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from logbroker_storage.errors import LogbrokerError

from .accumulator import Batch
from .partition_queue import PartitionQueue

logger = logging.getLogger("logbroker.producer")

REMEMBERED_FAILURES = 1000  # batches; of those beyond only the first failure is kept


class Failures:
    """Of one producer."""

    def __init__(self) -> None:
        self.lost_records = 0  # that failed and that nobody asks about
        self._failed: list[Batch] = []
        self._further: LogbrokerError | None = None  # the first that no batch here stands for

    def remember(self, batches: Iterable[Batch]) -> None:
        """Records of *batches* have failed."""
        self._failed = [batch for batch in self._failed if not batch.is_observed]
        unobserved = [batch for batch in batches if not batch.is_observed]
        if len(self._failed) < REMEMBERED_FAILURES:
            self._failed += unobserved
        elif unobserved:
            self._further = self._further or unobserved[0].unobserved_failure

    def note(self, error: LogbrokerError) -> None:
        """Something failed that no receipt will tell."""
        self._further = self._further or error

    def lose(self, queue: PartitionQueue, count: int, error: LogbrokerError) -> None:
        """Nobody will ask about *count* records that failed."""
        if count:
            self.lost_records += count
            logger.warning("%d records to %s-%d were lost: %s", count, queue.topic, queue.partition, error)

    def take(self) -> LogbrokerError | None:
        """The first failure that nobody was told; all count as told from now on."""
        failures = (batch.unobserved_failure for batch in self._failed)
        error = next((failure for failure in failures if failure is not None), self._further)
        self._failed = []
        self._further = None
        return error
