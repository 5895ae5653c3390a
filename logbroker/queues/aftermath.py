"""What dead processes left behind in one partition of a queue: leases that nobody can settle any more, and messages
that they had settled for transactions which they did not live to decide.

Processes say that they receive before anything is in their hands, so only those few have to be looked at, however
many messages are in flight. What was settled for a transaction is noted with it (``undecided``); whether it holds,
the journal says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import WriteFailedError
from logbroker_storage.events import QueueBlockEvent, QueueEvent
from logbroker_storage.view import OF_PARTITION

from ..groups import TopicPartition
from . import undecided
from .rows import BLOCK_OFFSETS, Rows, Run
from .settings import QueueSettings
from .state import QueueState

logger = logging.getLogger("logbroker.queues")


class Aftermath:
    """Safe across threads and processes."""

    def __init__(
        self,
        directory: DataDirectory,
        subscription_id: str,
        place: TopicPartition,
        *,
        prefix: bytes,
        settings: QueueSettings,
    ) -> None:
        """*prefix* is that of the queue's rows."""
        self._directory = directory
        self._subscription_id = subscription_id
        self._place = place
        self._prefix = prefix
        self._settings = settings
        self._hands = OF_PARTITION + prefix  # of volatile keys: which processes have received here
        self._has_said_so = False  # that this process receives here
        self._knows_the_dead = False  # whether those are over who died before all others that are known

    # Leases ---------------------------------------------------------------------------------------

    def say_that_hands_are_here(self) -> None:
        """Say, before anything is in them, that this process has to be looked after."""
        if not self._has_said_so:
            key = self._hands + self._directory.process_id.encode()
            self._directory.view.volatile.update(key, lambda _: b"")
            self._has_said_so = True

    def dead(self, holders: Callable[[], Iterable[str]]) -> set[str]:
        """Processes that have received here and are dead, until ``forget``.

        *holders* gives the processes that hold messages now. It is called once: what was said by a process that
        died together with all others is not known any more.
        """
        size = len(self._hands)
        known = {key[size:].decode() for key, _ in self._directory.view.volatile.items(self._hands)}
        if not self._knows_the_dead:
            known.update(holders())
        return {process_id for process_id in known if not self._directory.process_alive(process_id)}

    def forget(self, dead: Iterable[str]) -> None:
        """The leases of *dead* have been ended."""
        for process_id in dead:
            self._directory.view.volatile.update(self._hands + process_id.encode(), lambda _: None)
        self._knows_the_dead = True

    def forget_hands(self) -> None:
        """The queue is no more: nobody has to be looked after."""
        self._directory.view.volatile.forget(self._hands)

    # Transactions ---------------------------------------------------------------------------------

    def note(self, rows: Rows, settled: Sequence[Run]) -> None:
        """Note, where *settled* is put, that a transaction of this process is to decide it."""
        undecided.put(rows, self._directory.process_id, settled)

    def forget_note(self, settled: Sequence[Run]) -> None:
        """The transaction is decided."""
        try:
            with self._rows() as rows:
                undecided.remove(rows, settled[0].first)
        except WriteFailedError as error:
            # No matter: who asks the journal, once this process is dead, finds that it was decided.
            logger.debug("a note of what is decided by now could not be removed: %s", error)

    def restore(self, settled: Sequence[Run]) -> None:
        """The transaction, or whatever it was, has not come to be: take *settled* back."""
        with self._rows() as rows:
            QueueState(rows, self._settings).restore(settled)
            undecided.remove(rows, settled[0].first)

    def finish_undecided(self) -> None:
        """Set right what processes had settled for transactions that they did not live to decide."""
        if self._undecided_of_the_dead():
            with self._directory.journal.exclusive():
                self.ask_the_journal()

    def ask_the_journal(self) -> None:
        """The same, under the journal's lock: before anything else of this queue is journaled.

        Whoever noted something had this lock, so by now he has written his decision, or he is dead. Of the dead not
        all look it yet: the kernel frees a process's locks one by one, and this one may be milliseconds before the one
        that says who is alive. What is journaled meanwhile would say that his messages are done. So everybody's
        notes are looked at, but for those of this process.
        """
        others = [one for one in self._undecided() if one.process_id != self._directory.process_id]
        if not others:
            return
        self._directory.journal.catch_up()
        for one in others:
            if self._is_done_in_the_journal(one.first):
                self.forget_note(one.runs)
            else:
                self.restore(one.runs)

    def _undecided_of_the_dead(self) -> list[undecided.Undecided]:
        return [one for one in self._undecided() if not self._directory.process_alive(one.process_id)]

    def _undecided(self) -> list[undecided.Undecided]:
        view = self._directory.view
        with view.read() as transaction:
            return undecided.found(view.queue_rows(transaction, self._prefix))

    def _is_done_in_the_journal(self, offset: int) -> bool:
        view, subscription_id = self._directory.view, self._subscription_id
        event = view.events.get(QueueEvent, QueueEvent.key_of(subscription_id, *self._place))
        if event is not None and offset < event.start_offset:
            return True
        number, at = divmod(offset, BLOCK_OFFSETS)
        key = QueueBlockEvent.key_of(subscription_id, *self._place, number)
        block = view.events.get(QueueBlockEvent, key)
        return block is not None and bool(int.from_bytes(block.done, "little") >> at & 1)

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        view = self._directory.view
        with view.write() as transaction:
            yield view.queue_rows(transaction, self._prefix)
