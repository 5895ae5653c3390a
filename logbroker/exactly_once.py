"""One transaction for each partition polled: what is made of its records, and its offset, committed together.

The transactional id belongs to the source partition, not to the process: whoever the group gives a partition to
takes over its id, which fences the member before and finishes or aborts what that left. So any number of
processes share the work of a group, each record counts once, and each partition has a state of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from logbroker_storage.errors import FencedError, InvalidRequestError, LogbrokerError

from .groups import TopicPartition
from .records import Record

if TYPE_CHECKING:
    from .consumer import Consumer
    from .transaction import Transaction, Transactions

logger = logging.getLogger("logbroker.transactions")

TIMEOUT_S = 60.0  # of a batch's transaction; a member that dies is noticed at once


class Stop(Protocol):
    """What ends such work from outside, behind the batch at hand: a ``threading.Event``, or alike."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> object: ...


def check_stop(stop: Stop | None) -> None:
    """Raises InvalidRequestError for what cannot be asked whether to stop."""
    if stop is not None and not callable(getattr(stop, "is_set", None)):
        raise InvalidRequestError(f"stop= is a threading.Event, not {stop!r:.100}")


def by_partition(records: Iterable[Record]) -> list[tuple[TopicPartition, list[Record]]]:
    """What a poll has returned, each partition once.

    A poll may come to a partition again after others. All of it belongs in one transaction, because the offset
    that is committed with the first part is behind the last.
    """
    batches: dict[TopicPartition, list[Record]] = {}
    for place, run in groupby(records, key=lambda record: (record.topic, record.partition)):
        batches.setdefault(place, []).extend(run)
    return list(batches.items())


def commit_once(
    transactions: Transactions,
    consumer: Consumer,
    group: str,
    place: TopicPartition,
    write: Callable[[Transaction], None],
) -> bool:
    """Commit what *write* sends together with what *consumer* has handed out of *place*.

    False when the partition, or its id, is another member's now. The consumer has then gone back to what the
    group has committed, in all its partitions, as it has where this raises: what else it handed out is void.

    Raises:
        ClosedError: the broker was closed meanwhile.
        whatever *write* raises, and what ``Transaction.commit`` does.
    """
    topic, partition = place
    try:
        with transactions.begin(f"{group}/{topic}-{partition}", TIMEOUT_S) as tx:
            tx.commit_offsets(consumer, only=place)
            write(tx)
    except FencedError as error:
        logger.info("%s-%d is read again, here or by another member: %s", topic, partition, error)
        consumer.return_to_committed()
        return False
    except LogbrokerError:
        transactions.check_open()  # closing aborts what is open: what that made of the batch is no news
        raise
    return True
