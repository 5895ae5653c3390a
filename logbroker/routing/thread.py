"""A router in a thread of its own, for a process that has more to do: ``logbroker serve``.

Whatever ends it is logged, and it begins again after a while: the process goes on all the same.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import LogbrokerError

from ..transaction import Transactions
from ..transaction_coordinator import TransactionCoordinator
from .router import run_router

logger = logging.getLogger("logbroker.router")

FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 60.0


class RouterThread:
    """Routes from ``start`` to ``stop``. Start and stop it from one thread."""

    def __init__(
        self,
        directory: DataDirectory,
        coordinator: TransactionCoordinator,
        *,
        on_routed: Callable[[int], object],
        on_failure: Callable[[], object],
        route: Callable[..., int] = run_router,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        """*on_routed* is told how many records of each batch; *on_failure* when the router begins again.

        *route* is what runs: ``run_router``.
        """
        self._directory = directory
        self._coordinator = coordinator
        self._on_routed = on_routed
        self._on_failure = on_failure
        self._route = route
        self._first_pause_s = first_pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logbroker-router", daemon=True)

    def start(self) -> None:
        """Begin to route."""
        self._thread.start()

    def stop(self) -> None:
        """End after the batch at hand; returns when it has ended."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s = self._first_pause_s
        while not self._stop.is_set():
            routed = 0

            def count(records: int) -> None:
                nonlocal routed
                routed += records
                self._on_routed(records)

            transactions = Transactions(self._directory, self._coordinator)
            try:
                self._route(self._directory, transactions, stop=self._stop, on_routed=count)
            except Exception as error:
                # Of any kind: steps of pipelines may be somebody else's code, and the server must outlive them.
                pause_s = self._first_pause_s if routed else min(2 * pause_s, LAST_PAUSE_S)
                logger.error(
                    "the router failed and begins again in %g s: %s",
                    pause_s,
                    error,
                    exc_info=None if isinstance(error, LogbrokerError) else error,
                )
                self._on_failure()
                self._stop.wait(pause_s)
            finally:
                transactions.close()
