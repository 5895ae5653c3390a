"""``broker.transform``: read, map, write and commit exactly once, batch by batch.

    poll ──► one transaction for each partition polled ──► records, state and offset committed together

Any number of processes share the work (see ``exactly_once``), and each partition has a state of its own: what
has to meet in the state must have one key, as it then is in one partition.

A record that cannot be transformed, with ``dead_letter=``:

    what went wrong                       what the transaction has of the record  then
    a pipeline or a function failed       nothing                                 its dead letter is sent instead
    the target refused the first message  nothing                                 likewise
    it refused a later one                the first messages                      the batch is aborted and read
    a function that uses the state failed  perhaps some of the state              again; the record is known now

What another holder, a disk or a stop did is about no record: it ends the transform, or the batch.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Union

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import (
    InvalidRequestError,
    LogbrokerError,
    RecordTooLargeError,
)

from .arguments import whole_number
from .consumer import Consumer
from .dead_letters import dead_letter_message
from .deadlines import check_timeout
from .exactly_once import Stop, by_partition, check_stop, commit_once
from .exception_text import named
from .records import Message, Record, without_reserved_headers
from .topic_selection import TopicSelection
from .transaction import Transaction, Transactions
from .transaction_state import TransactionState
from .transform_outputs import Output, messages_of

if TYPE_CHECKING:
    from .transforms.pipeline import Pipeline

logger = logging.getLogger("logbroker.transactions")

POLL_S = 0.2  # how soon a stop is noticed while nothing comes
REASON = "transform-failed"

Function = Callable[[Record], Output] | Callable[[Record, TransactionState], Output]
Transformation = Union[Function, str, os.PathLike[str], Mapping[str, Any], "Pipeline"]
Apply = Callable[[Record, Transaction], list[Message]]
RecordPlace = tuple[str, int, int]


@dataclass
class TransformProgress:
    """How far a transform is: what its committed batches have taken in."""

    records: int = 0
    dead_letters: int = 0


def run_transform(
    directory: DataDirectory,
    transactions: Transactions,
    source: str,
    target: str,
    *,
    group: str,
    function: Transformation,
    stop: Stop | None = None,
    max_records: int = 500,
    idle_timeout: float | None = None,
    dead_letter: str | None = None,
    progress: TransformProgress | None = None,
) -> int:
    """See ``Broker.transform``; *progress* is kept up to date."""
    check_stop(stop)
    check_timeout(idle_timeout, "idle_timeout")
    whole_number("max_records", max_records)
    if progress is not None and not isinstance(progress, TransformProgress):
        raise InvalidRequestError(f"progress= is a TransformProgress, not {progress!r:.100}")
    for option, topic in (("target", target), ("dead_letter", dead_letter)):
        if topic is None:
            continue
        directory.topic(topic)  # so that a wrong name shows now
        if TopicSelection.parse(source).resolve([topic]):
            raise InvalidRequestError(
                f"{option} {topic!r} is read by this transform itself ({source!r}), without end: choose another topic"
            )
    progress = TransformProgress() if progress is None else progress
    apply, uses_state = _applied(function)
    run = _Run(target, dead_letter, group, apply, uses_state=uses_state)
    idle_s = 0.0
    with Consumer(
        directory, source, group=group, delivery="manual", max_poll_records=max_records
    ) as consumer:
        consumer.keep_ttl_headers()
        while stop is None or not stop.is_set():
            transactions.check_open()
            records = consumer.poll(max_records, POLL_S)
            idle_s = 0.0 if records else idle_s + POLL_S
            if idle_timeout is not None and idle_s > idle_timeout:
                break
            for place, batch in by_partition(records):
                try:
                    if not commit_once(transactions, consumer, group, place, partial(run.write, batch)):
                        break
                except _Again:
                    break  # the abort has put the consumer back to what its group has committed
                progress.records += len(batch)
                progress.dead_letters += run.committed(batch)
    return progress.records


class _Again(Exception):  # noqa: N818  (not an error: the batch is read again)
    """A record has left something in the transaction before it failed: take the batch back."""


class _Run:
    """What happens to the records of a batch."""

    def __init__(
        self, target: str, dead_letter: str | None, group: str, apply: Apply, *, uses_state: bool
    ) -> None:
        self._target = target
        self._dead_letter = dead_letter
        self._group = group
        self._apply = apply
        self._uses_state = uses_state
        self._failed: dict[RecordPlace, Exception] = {}  # known from an attempt that was taken back
        self._dead = 0  # letters of the batch at hand

    def write(self, batch: list[Record], tx: Transaction) -> None:
        """Send what the records of *batch* become.

        Raises:
            _Again: nothing of it counts.
        """
        target, apply = self._target, self._apply
        if self._dead_letter is None:
            tx.send_many(target, chain.from_iterable(apply(record, tx) for record in batch))
        else:
            self._dead = sum(not self._sent(tx, record) for record in batch)

    def _sent(self, tx: Transaction, record: Record) -> bool:
        """Whether the messages of *record* were sent, and not its dead letter."""
        known = self._failed.get(_place(record)) if self._failed else None
        if known is not None:
            self._bury(tx, record, known)
            return False
        try:
            messages = self._apply(record, tx)
        except Exception as error:
            if not _is_about_the_record(error):
                raise
            if self._uses_state:
                self._failed[_place(record)] = error
                raise _Again from None
            self._bury(tx, record, error)
            return False
        for number, message in enumerate(messages):
            try:
                tx.send_many(self._target, [message])
            except (RecordTooLargeError, InvalidRequestError) as error:
                if number or self._uses_state:
                    self._failed[_place(record)] = error
                    raise _Again from None
                self._bury(tx, record, error)
                return False
        return True

    def _bury(self, tx: Transaction, record: Record, error: Exception) -> None:
        assert self._dead_letter is not None, "otherwise the error ends the transform"
        text = str(error) if isinstance(error, LogbrokerError) else named(error)
        logger.info(
            "%s-%d, offset %d becomes a dead letter in %s: %s", *_place(record), self._dead_letter, text
        )
        letter = dead_letter_message(record, reason=REASON, error=text, by=self._group)
        tx.send_many(self._dead_letter, [letter])

    def committed(self, batch: list[Record]) -> int:
        """*batch* counts; how many of it became dead letters."""
        if self._failed:
            for record in batch:
                self._failed.pop(_place(record), None)
        return self._dead


def _place(record: Record) -> RecordPlace:
    return record.topic, record.partition, record.offset


def _is_about_the_record(error: Exception) -> bool:
    """Not about a claim, a disk or a closed handle, which a function that uses the state may meet as well."""
    from .expressions import ExpressionError
    from .transforms.errors import TransformError

    about_records = (TransformError, ExpressionError, InvalidRequestError, RecordTooLargeError)
    return isinstance(error, about_records) or not isinstance(error, LogbrokerError)


def _applied(function: Transformation) -> tuple[Apply, bool]:
    """*function* as one of a record and a transaction, and whether it uses the state.

    Raises:
        InvalidRequestError: it is nothing that can be called or loaded.
    """
    if callable(function):
        return _with_state(function)
    from .transforms.loading import PipelineError, load_pipeline

    try:
        pipeline = load_pipeline(function)
    except PipelineError as error:
        raise PipelineError(f"function=: {error}", step=error.step) from None
    return lambda record, _: pipeline.apply(record), False


def _with_state(function: Function) -> tuple[Apply, bool]:
    plain: Any = function
    try:
        parameters = inspect.signature(plain).parameters.values()
    except ValueError:  # a built-in without a signature
        parameters = {}.values()
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]

    def apply(record: Record, _: Transaction) -> list[Message]:
        record = without_reserved_headers(record)
        return messages_of(record, plain(record))

    def apply_with_state(record: Record, tx: Transaction) -> list[Message]:
        record = without_reserved_headers(record)
        return messages_of(record, plain(record, tx.state))

    return (apply_with_state, True) if len(positional) == 2 else (apply, False)
