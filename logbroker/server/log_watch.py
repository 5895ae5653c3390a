"""Wakes who waits for records: long-poll fetches, for partitions that any process may append to.

The order is watch, look, wait, as everywhere (``wakeup``): a fetch subscribes before it looks at the log, so a
record that becomes visible meanwhile ends its wait at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import TopicNotFoundError
from logbroker_storage.touching import signal_paths
from logbroker_storage.wakeup import Waiter

from ..groups import TopicPartition

POLL_S = 0.005  # where there is no inotify
KEPT_WATCHES = 20_000  # partitions that stay watched when nobody waits for them: the next poll comes soon

Watched = TopicPartition | str  # a partition, or the name of a signal


class News:
    """What one subscriber has not looked at yet."""

    def __init__(self) -> None:
        self._places: set[Watched] = set()
        self._event = asyncio.Event()

    def come(self, place: Watched) -> None:
        self._places.add(place)
        self._event.set()

    def end(self) -> None:
        """Let the subscriber look up, though nothing has come."""
        self._event.set()

    async def wait(self) -> set[Watched]:
        """The places where something may have become visible since the last wait."""
        await self._event.wait()
        self._event.clear()
        places, self._places = self._places, set()
        return places


class LogWatch:
    """On the event loop only."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._waiter = Waiter(directory)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Watched, set[News]] = {}  # for what is watched
        self._places: dict[str, Watched] = {}  # by the path of a watched file
        self._polling: asyncio.TimerHandle | None = None
        if self._waiter.fileno() >= 0:
            self._loop.add_reader(self._waiter.fileno(), self._take)

    def unwatched(self, places: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Those of *places* whose signal files have to be there before ``subscribe``: see ``signal_files``."""
        return [place for place in places if place not in self._waiting]

    def subscribe(self, place: TopicPartition, news: News) -> None:
        """Tell *news* whenever a record becomes visible in *place*, until ``unsubscribe``.

        Raises:
            TopicNotFoundError: it is not there.
        """
        if place not in self._waiting:
            self._watch(place)
        self._waiting[place].add(news)
        if self._waiter.fileno() < 0 and self._polling is None:
            self._poll()

    def subscribe_signal(self, name: str, news: News) -> None:
        """Tell *news* whenever some process gives a signal, until ``unsubscribe_signal``."""
        if name not in self._waiting:
            self._waiter.watch_signal(name)
            self._waiting[name] = set()
            self._places[self._directory.signal_path(name)] = name
        self._waiting[name].add(news)
        if self._waiter.fileno() < 0 and self._polling is None:
            self._poll()

    def unsubscribe_signal(self, name: str, news: News) -> None:
        subscribers = self._waiting.get(name, set())
        subscribers.discard(news)
        if not subscribers and len(self._waiting) > KEPT_WATCHES:
            self._waiting.pop(name, None)
            self._waiter.unwatch_signal(name)
            self._places.pop(self._directory.layout.signal(name), None)

    def unsubscribe(self, places: Iterable[TopicPartition], news: News) -> None:
        for place in places:
            subscribers = self._waiting.get(place)
            if subscribers is None:
                continue
            subscribers.discard(news)
            if not subscribers and len(self._waiting) > KEPT_WATCHES:
                self.forget(place)

    def forget(self, place: TopicPartition) -> None:
        """No longer watch a partition, which may be gone; whoever waits for it looks again."""
        for news in self._waiting.pop(place, ()):
            news.come(place)
        self._waiter.unwatch_partition(*place)
        for path in self._paths(place):
            self._places.pop(path, None)

    def wake_all(self) -> None:
        for subscribers in self._waiting.values():
            for news in subscribers:
                news.end()

    def _watch(self, place: TopicPartition) -> None:
        self._waiter.watch_partition(*place)
        self._waiting[place] = set()
        for path in self._paths(place):
            self._places[path] = place

    def _paths(self, place: TopicPartition) -> tuple[str, str]:
        return signal_paths(self._directory.layout.partition_lock(*place))

    def _take(self) -> None:
        for path in self._waiter.take():
            place = self._places.get(path)
            if place is not None:
                for news in self._waiting[place]:
                    news.come(place)

    def _poll(self) -> None:
        self._take()
        is_needed = any(self._waiting.values())
        self._polling = self._loop.call_later(POLL_S, self._poll) if is_needed else None

    def close(self) -> None:
        if self._waiter.fileno() >= 0:
            self._loop.remove_reader(self._waiter.fileno())
        if self._polling is not None:
            self._polling.cancel()
        self._waiter.close()


def signal_files(directory: DataDirectory, places: Iterable[TopicPartition]) -> None:
    """Have the files of *places* exist that writers touch; in a thread, as it takes a while for many.

    A partition that is gone meanwhile is passed over.
    """
    for place in places:
        try:
            directory.log(*place).signal_paths()
        except TopicNotFoundError:
            continue
