"""What one broker object asks and answers: its requester, made by the first request, and its responders.

field         guard    written by
_requester    _lock    the first request, and the first after it failed
_past         _lock    the same: what became of the requests of those that failed
_responders   _lock    whoever makes one
_closed       _lock    close
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import ClosedError, LogbrokerError

from .correlation import RequestCounts
from .requester import PendingRequest, Requester
from .responder import Function, Responder
from .topics import sweep_reply_topics

if TYPE_CHECKING:
    from ..transaction import Transactions


class Exchange:
    """Use ``broker.request`` and ``broker.responder``. Safe across threads."""

    def __init__(self, directory: DataDirectory, transactions: Transactions) -> None:
        self._directory = directory
        self._transactions = transactions
        self._lock = threading.Lock()
        self._requester: Requester | None = None
        self._past = RequestCounts()
        self._responders: list[Responder] = []
        self._closed = False
        directory.maintenance.add_task("reply topics", lambda: sweep_reply_topics(directory))

    def begin(self, topic: str, value: bytes | None, **options: Any) -> PendingRequest:
        """As ``Requester.begin``."""
        return self._current_requester().begin(topic, value, **options)

    def _current_requester(self) -> Requester:
        requester = self._requester
        if requester is not None and not requester.has_failed:
            return requester
        with self._lock:
            self._check_open()
            requester = self._requester
            if requester is not None and requester.has_failed:
                self._past = _sum(self._past, requester.counts)
                requester.close()
                self._requester = requester = None
            if requester is None:
                requester = self._requester = Requester(self._directory)
            return requester

    @property
    def counts(self) -> RequestCounts:
        with self._lock:
            requester = self._requester
            return self._past if requester is None else _sum(self._past, requester.counts)

    def responder(self, topic: str, **options: Any) -> Callable[[Function], Responder]:
        """A decorator that makes a function a responder, which runs from then on."""

        def decorate(function: Function) -> Responder:
            with self._lock:
                self._check_open()
                responder = Responder(self._directory, self._transactions, topic, function, **options)
                self._responders = [other for other in self._responders if not other.is_closed]
                self._responders.append(responder)
            return responder

        return decorate

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the broker was closed; call logbroker.open() again")

    def close(self) -> None:
        """Stop the responders, behind the requests at hand, and delete the reply topic. Idempotent."""
        with self._lock:
            self._closed = True
            responders, self._responders = self._responders, []
        failures: list[LogbrokerError] = []
        for responder in responders:
            self._do(responder.stop, failures)  # its function may still want to ask somebody else
        with self._lock:
            requester, self._requester = self._requester, None
        if requester is not None:
            self._do(requester.close, failures)
        if failures:
            raise failures[0]

    def _do(self, step: Callable[[], None], failures: list[LogbrokerError]) -> None:
        try:
            step()
        except LogbrokerError as error:
            failures.append(error)


def _sum(one: RequestCounts, other: RequestCounts) -> RequestCounts:
    return RequestCounts(
        one.sent + other.sent,
        one.answered + other.answered,
        one.given_up + other.given_up,
        one.dropped + other.dropped,
    )
