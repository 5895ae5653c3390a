"""Who may write as which producer: ids that nobody else has, and names with one holder at a time.

Both are events of the journal. Ids are reserved many at a time, so that a process journals once for all of them;
those that it does not give out are lost with it. A name has an epoch, which grows with every new holder, and an id
for each block of sequences that was written under it.
"""

from __future__ import annotations

import threading

from .errors import FencedError
from .events import NamedProducerEvent, ProducerIdsEvent
from .journal import Journal
from .startup import USED_PRODUCER_IDS_END
from .view import View

RESERVED = 1000  # ids that one journal event reserves for a process


class ProducerIds:
    """The producer ids of a directory. Safe across threads and processes."""

    def __init__(self, journal: Journal, view: View) -> None:
        self._journal = journal
        self._view = view
        self._reserved = range(0)  # and not given out yet; guarded by _lock
        self._lock = threading.Lock()  # held while waiting for the journal

    def allocate(self) -> int:
        """A producer id that nobody else has or will get."""
        with self._lock:
            if not self._reserved:
                self._reserved = self._reserve(RESERVED)
            first, self._reserved = self._reserved[0], self._reserved[1:]
        return first

    def _reserve(self, count: int) -> range:
        with self._journal.exclusive() as turn:
            event = self._view.events.get(ProducerIdsEvent, ProducerIdsEvent.key_of())
            journaled = event.next_producer_id if event is not None else 0
            first = max(journaled, self._view.meta_int(USED_PRODUCER_IDS_END))
            turn.record([ProducerIdsEvent(first + count)])
        return range(first, first + count)

    def named(self, name: str) -> NamedProducerEvent | None:
        return self._view.events.get(NamedProducerEvent, NamedProducerEvent.key_of(name))

    def open_named(self, name: str) -> NamedProducerEvent:
        """Become the holder of a name: its epoch grows, so that the holder before is fenced. Durable."""
        with self._journal.exclusive() as turn:
            known = self.named(name)
            epoch = known.epoch + 1 if known is not None else 0
            event = NamedProducerEvent(name, epoch, known.producer_ids if known is not None else {})
            turn.record([event])
        return event

    def add_block(self, name: str, epoch: int, block: int) -> int:
        """The producer id that carries the sequences of *block* (sequence >> 31) of a named producer.

        Raises:
            FencedError: a newer holder has the name.
        """
        producer_id = self.allocate()
        with self._journal.exclusive() as turn:
            event = self.named(name)
            if event is None or event.epoch != epoch:
                raise FencedError(f"producer {name!r} was opened again elsewhere; this holder must stop")
            if block in event.producer_ids:
                return event.producer_ids[block]
            turn.record([NamedProducerEvent(name, epoch, event.producer_ids | {block: producer_id})])
        return producer_id
