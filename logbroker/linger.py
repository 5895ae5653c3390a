"""The producer's own thread: it does what nobody asked for in time.

    it sees                                   it does
    an open batch older than ``linger``       closes and appends it
    written batches that nobody syncs         syncs them, while senders go on
    nothing for ``IDLE_S``                    ends; the next batch starts it again

A sender does not wake it for each batch (a wake-up costs more than a durable send's own work). While records
come in, the thread looks every ``linger`` by itself; only when it has not for long does ``arm`` start it.

Guard: the producer's lock for every field.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from .deadlines import LONGEST_WAIT_S

if TYPE_CHECKING:
    from .accumulator import Batch
    from .delivery import Delivery
    from .partition_queue import PartitionQueue

IDLE_S = 2.0
SHORTEST_TICK_S = 0.002
# Between syncs that nobody waits for. Syncs in close succession hold up the writes (they take the GIL and the
# inode's lock in turns): at 64 KiB batches 0.6 M records/s without a pause, 1.7 M with this one.
SYNC_PAUSE_S = 0.02


class LingerThread:
    """Started by the first batch, ended by ``stop`` or by idleness."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._tick_s = max(delivery.linger, SHORTEST_TICK_S)
        self._condition = threading.Condition(delivery.lock)
        self._thread: threading.Thread | None = None
        self._waiting = False
        self._stopping = False
        self._synced_s = 0.0  # monotonic time of the last syncs

    # Under the producer's lock ------------------------------------------------------------------------

    def arm(self) -> None:
        """A batch is opened now: somebody must look when its linger is over."""
        if self._thread is None and not self._stopping:
            thread = threading.Thread(target=self._run, name="logbroker-producer", daemon=True)
            thread.start()  # may fail where the process has too many; the next batch tries again
            self._thread = thread

    def wake(self) -> None:
        """There is something to sync."""
        if (
            self._waiting
            and not self._delivery.space_wanted
            and time.monotonic() < self._synced_s + SYNC_PAUSE_S
        ):
            return  # it will look by itself
        if self._waiting:
            self._waiting = False
            self._condition.notify()
        else:
            self.arm()

    # From outside -------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the thread and wait for its last sync."""
        with self._delivery.lock:
            self._stopping = True
            self._condition.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # The thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        delivery = self._delivery
        while True:
            work = self._next_work()
            if work is None:
                return
            for queue in work:
                delivery.append_closed(queue)
            for queue in work:
                if delivery.fire_and_forget or delivery.acks.value == "written":
                    delivery.sync(queue)
                else:
                    delivery.lead_if_free(queue)
            self._synced_s = time.monotonic()

    def _next_work(self) -> list[PartitionQueue] | None:
        """Wait for queues with something to append or sync; None to end."""
        delivery = self._delivery
        with delivery.lock:
            idle_since_s = time.monotonic()
            while True:
                if self._stopping:
                    self._thread = None
                    return None
                now_s = time.monotonic()
                work = self._take(now_s)
                if work:
                    return work
                if delivery.open:
                    idle_since_s = now_s
                elif now_s - idle_since_s > IDLE_S:
                    self._thread = None
                    return None
                self._waiting = True
                self._condition.wait(self._pause_s(now_s))
                self._waiting = False

    def _take(self, now_s: float) -> list[PartitionQueue]:
        delivery = self._delivery
        work: list[PartitionQueue] = []
        if delivery.space_wanted or now_s >= self._synced_s + SYNC_PAUSE_S:
            work += delivery.unsynced
            delivery.unsynced.clear()
        for batch in _expired(delivery.open, now_s - delivery.linger):
            delivery.close_batch(batch)
            work.append(batch.queue)
        return work

    def _pause_s(self, now_s: float) -> float:
        delivery = self._delivery
        pause_s = self._tick_s
        for batch in delivery.open:
            pause_s = batch.opened_s + delivery.linger - now_s
            break
        if now_s < self._synced_s + SYNC_PAUSE_S:  # until then ``wake`` wakes nobody
            pause_s = min(pause_s, self._synced_s + SYNC_PAUSE_S - now_s)
        return min(max(0.0, pause_s), LONGEST_WAIT_S)


def _expired(batches: dict[Batch, None], opened_before_s: float) -> list[Batch]:
    """Those opened before; *batches* are oldest first."""
    expired = []
    for batch in batches:
        if batch.opened_s > opened_before_s:
            break
        expired.append(batch)
    return expired
