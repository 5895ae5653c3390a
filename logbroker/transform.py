"""``broker.transform``: read, map, write and commit exactly once, batch by batch.

    poll ──► one transaction for each partition polled ──► records, state and offset committed together

Any number of processes share the work (see ``exactly_once``), and each partition has a state of its own: what
has to meet in the state must have one key, as it then is in one partition.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from logbroker_storage.errors import InvalidRequestError

from .exactly_once import by_partition, commit_once
from .records import Message, Record
from .transaction import Transaction, Transactions
from .transaction_state import TransactionState

if TYPE_CHECKING:
    from .broker import Broker

POLL_S = 0.2  # how soon a stop is noticed while nothing comes

Output = bytes | Message | Iterable[bytes | Message] | None
Function = Callable[[Record], Output] | Callable[[Record, TransactionState], Output]


def run_transform(
    broker: Broker,
    transactions: Transactions,
    source: str,
    target: str,
    *,
    group: str,
    function: Function,
    stop: threading.Event | None,
    max_records: int,
    idle_timeout: float | None,
) -> int:
    """See ``Broker.transform``."""
    broker.topic(target)  # so that a wrong name shows now
    apply = _with_state(function)
    done, idle_s = 0, 0.0
    with broker.consumer(source, group=group, delivery="manual", max_poll_records=max_records) as consumer:
        while stop is None or not stop.is_set():
            records = consumer.poll(max_records, POLL_S)
            idle_s = 0.0 if records else idle_s + POLL_S
            if idle_timeout is not None and idle_s > idle_timeout:
                break
            for place, batch in by_partition(records):
                write = partial(_write, target=target, batch=batch, apply=apply)
                if not commit_once(transactions, consumer, group, place, write):
                    break
                done += len(batch)
    return done


def _write(
    tx: Transaction, *, target: str, batch: Iterable[Record], apply: Callable[[Record, Transaction], Output]
) -> None:
    for record in batch:
        _send(tx, target, record, apply(record, tx))


def _with_state(function: Function) -> Callable[[Record, Transaction], Output]:
    """*function* as one of a record and a transaction, whether it takes the state or not."""
    if not callable(function):
        raise InvalidRequestError(f"function= is something to call with a record, not {function!r}")
    plain: Any = function
    try:
        parameters = inspect.signature(plain).parameters.values()
    except ValueError:  # a built-in without a signature
        return lambda record, _: plain(record)
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    if len(positional) == 2:
        return lambda record, tx: plain(record, tx.state)
    return lambda record, _: plain(record)


def _send(tx: Transaction, target: str, source: Record, output: Output) -> None:
    """Send what a function has made of *source*; a value alone keeps its key."""
    if output is None:
        return
    if isinstance(output, bytes):
        tx.send(target, output, key=source.key)
    elif isinstance(output, Message):
        tx.send(
            target,
            output.value,
            key=output.key,
            headers=output.headers,
            partition=output.partition,
            timestamp=output.timestamp,
            ttl=output.ttl,
        )
    elif isinstance(output, Iterable) and not isinstance(output, (str, dict)):
        for one in output:
            if not isinstance(one, (bytes, Message)):
                raise _no_message(one)
            _send(tx, target, source, one)
    else:
        raise _no_message(output)


def _no_message(output: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"a transform's function returns bytes, a Message, an iterable of them, or None, not {output!r:.100}"
    )
