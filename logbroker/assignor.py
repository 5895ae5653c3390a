"""Who should own which partition: balanced first, then as little moved as possible.

    1  a partition stays with its target, or else its owner, while that is a member that wants its topic
    2  the others go, fewest candidates first, to the candidate with the fewest partitions
    3  while somebody has at least two more than somebody else, a partition goes from the one to the other,
       if need be through members between them who can take the one's topic and give the other's

Step 3 ends in the most even assignment that the subscriptions allow (no such path is left: an optimal
semi-matching, Harvey et al. 2003); with equal subscriptions the counts differ by at most one, and each
move was necessary. Ties go to the member that joined first, so the outcome depends on the input alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping

import msgspec

TopicPartition = tuple[str, int]


class Assignment(msgspec.Struct, frozen=True):
    """What is to be assigned.

    ``subscriptions``: each member's topics, members in the order of their joining. ``held``: every
    partition with whom it should stay with if possible, most wanted first (names of no member are skipped).
    """

    subscriptions: Mapping[str, frozenset[str]]
    held: Mapping[TopicPartition, tuple[str, ...]]


def assign(wanted: Assignment) -> dict[TopicPartition, str]:
    """The member for each partition that any member has subscribed to."""
    table = _Table(wanted.subscriptions)
    homeless = []
    for place, holders in wanted.held.items():
        holder = next((name for name in holders if table.may_take(name, place[0])), None)
        if holder is None:
            homeless.append(place)
        else:
            table.give(place, holder)
    candidates = {topic: table.candidates(topic) for topic in {place[0] for place in homeless}}
    for place in sorted(homeless, key=lambda place: (len(candidates[place[0]]), place)):
        if candidates[place[0]]:
            table.give(place, min(candidates[place[0]], key=table.load.__getitem__))
    while (path := table.uneven_path()) is not None:
        for giver, taker in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
            table.move(giver, taker)
    return table.owners


class _Table:
    """An assignment in the making."""

    def __init__(self, subscriptions: Mapping[str, frozenset[str]]) -> None:
        self.subscriptions = subscriptions
        self.owners: dict[TopicPartition, str] = {}
        self.load = dict.fromkeys(subscriptions, 0)
        self._held = {name: _Held() for name in subscriptions}

    def may_take(self, name: str, topic: str) -> bool:
        return topic in self.subscriptions.get(name, ())

    def candidates(self, topic: str) -> list[str]:
        return [name for name in self.subscriptions if self.may_take(name, topic)]

    def give(self, place: TopicPartition, name: str) -> None:
        self.owners[place] = name
        self.load[name] += 1
        self._held[name].add(place)

    def move(self, giver: str, taker: str) -> None:
        """One partition, of the topic that the giver has most more of than the taker."""
        held = self._held[giver]
        topic = held.most_more_than(self._held[taker], self.subscriptions[taker])
        self.load[giver] -= 1
        self.give((topic, held.take(topic)), taker)

    def uneven_path(self) -> list[str] | None:
        """Members along which one partition can be handed on so that the loads get more even."""
        if max(self.load.values(), default=0) - min(self.load.values(), default=0) < 2:
            return None
        loads = Counter(self.load)
        for giver, load in loads.most_common():
            path = self._path_to_lighter(giver, load - 2)
            if path is not None:
                return path
        return None

    def _path_to_lighter(self, giver: str, at_most: int) -> list[str] | None:
        """The shortest way from *giver* to the lightest member that has *at_most* partitions."""
        came_from: dict[str, str | None] = {giver: None}
        queue = deque([giver])
        while queue:
            name = queue.popleft()
            topics = self._held[name].topics
            takers = [
                other
                for other, wanted in self.subscriptions.items()
                if other not in came_from and not wanted.isdisjoint(topics)
            ]
            for taker in takers:
                came_from[taker] = name
            lightest = min(takers, key=self.load.__getitem__, default=None)
            if lightest is not None and self.load[lightest] <= at_most:
                return _path(came_from, lightest)
            queue.extend(takers)
        return None


class _Held:
    """What a member has: ``topics``, each with its partitions, and the topics by how many those are.

    By number, because the topic to give is one of the first that are looked at, out of thousands.
    """

    def __init__(self) -> None:
        self.topics: dict[str, list[int]] = {}
        self._by_number: defaultdict[int, dict[str, None]] = defaultdict(dict)  # ordered sets

    def add(self, place: TopicPartition) -> None:
        topic, partition = place
        partitions = self.topics.setdefault(topic, [])
        self._by_number[len(partitions)].pop(topic, None)
        partitions.append(partition)
        self._by_number[len(partitions)][topic] = None

    def take(self, topic: str) -> int:
        """The partition of *topic* that it got last, which it has no longer."""
        partitions = self.topics[topic]
        del self._by_number[len(partitions)][topic]
        partition = partitions.pop()
        if partitions:
            self._by_number[len(partitions)][topic] = None
        else:
            del self.topics[topic]
        return partition

    def most_more_than(self, other: _Held, wanted: frozenset[str]) -> str:
        """The topic of *wanted* that it has most more of than *other*; there must be one."""
        best: tuple[int, str] | None = None
        for number in sorted(self._by_number, reverse=True):
            for topic in self._by_number[number]:
                if best is not None and best[0] >= number:
                    return best[1]  # no topic that follows can have more
                more = number - len(other.topics.get(topic, ()))
                if topic in wanted and (best is None or more > best[0]):
                    best = more, topic
        assert best is not None
        return best[1]


def _path(came_from: Mapping[str, str | None], last: str) -> list[str]:
    path = [last]
    while (before := came_from[path[-1]]) is not None:
        path.append(before)
    return path[::-1]
