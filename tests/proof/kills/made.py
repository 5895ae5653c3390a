"""The topics that workers make, write to and delete: each is there, gone, or was in the making.

last note    the topic
making       may be there
made         is there
wrote        is there, with so many records
deleting     may be there
deleted      is gone
"""

from __future__ import annotations

from collections.abc import Iterable


class Made:
    """Told of the workers' notes; compared with the topics that are there."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._owners: dict[str, int] = {}
        self.made = 0

    def note(self, worker: int, kind: str, topic: str, count: int = 0) -> None:
        if kind == "made":
            self.made += 1
        self._last[topic] = kind
        self._owners[topic] = worker
        if kind == "wrote":
            self._counts[topic] = count

    def compare(self, there: Iterable[str], working: Iterable[int]) -> dict[str, int | None]:
        """*there* are the topics that were listed before the last notes were told.

        Returns those that nobody will delete, because their worker is no longer *working*, with the number of
        their records; None when that was not noted.
        """
        listed, alive = set(there), set(working)
        invented = listed - set(self._last)
        assert not invented, f"nobody made {sorted(invented)}"
        left: dict[str, int | None] = {}
        for topic, kind in list(self._last.items()):
            is_orphan = self._owners[topic] not in alive
            if kind == "deleted":
                # Somebody alive may have deleted it after the topics were listed.
                assert topic not in listed or not is_orphan, f"{topic} is {kind}, and is there"
            elif kind in ("made", "wrote"):
                # Somebody alive may have made it after the topics were listed.
                assert topic in listed or not is_orphan, f"{topic} is {kind}, and is not there"
            if is_orphan:
                if topic in listed:
                    left[topic] = self._counts.get(topic) if kind == "wrote" else None
                else:
                    self.forget(topic)
        return left

    def forget(self, topic: str) -> None:
        """It was deleted, and is told of no more."""
        del self._last[topic]
        self._owners.pop(topic)
        self._counts.pop(topic, None)
