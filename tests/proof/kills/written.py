"""What the writers were told is in the log, and what is there.

    every writer's numbers in a partition          0, 1, 2, … in this order: none twice, none left out
    offsets                                        0, 1, 2, …: nothing else is there
    a number that was acknowledged with an offset  is at that offset

Nothing here knows files or processes: a test feeds it with what never was.
"""

from __future__ import annotations

from array import array
from collections import defaultdict

Place = tuple[str, int, str]  # topic, partition and the writer's name


class Written:
    """Told of both sides as they come; each look at the log begins after what was acknowledged was told."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, int], int] = defaultdict(int)
        self._offsets: dict[Place, array[int]] = defaultdict(lambda: array("q"))  # from _forgotten on
        self._forgotten: dict[Place, int] = defaultdict(int)
        self._acknowledged: list[tuple[Place, int, int]] = []  # and not compared yet
        self.acknowledgements = 0
        self.records = 0

    def acknowledged(self, place: Place, number: int, offset: int) -> None:
        self._acknowledged.append((place, number, offset))
        self.acknowledgements += 1

    def found(self, place: Place, number: int, offset: int) -> None:
        """The next record of a partition."""
        topic, partition, name = place
        end = self._ends[topic, partition]
        assert offset == end, f"{topic}-{partition}: offset {offset} comes after {end - 1}"
        self._ends[topic, partition] = end + 1
        offsets = self._offsets[place]
        following = self._forgotten[place] + len(offsets)
        assert number == following, (
            f"{topic}-{partition}@{offset} holds number {number} of {name}, where {following} comes next"
        )
        offsets.append(offset)
        self.records += 1

    def end(self, topic: str, partition: int) -> int:
        """The offset behind what was found."""
        return self._ends[topic, partition]

    def compare(self) -> None:
        """Everything that was acknowledged by now was looked for."""
        for place, number, offset in self._acknowledged:
            topic, partition, name = place
            index = number - self._forgotten[place]
            offsets = self._offsets[place]
            assert 0 <= index < len(offsets), (
                f"number {number} of {name} was acknowledged at {topic}-{partition}@{offset}, and is not there"
            )
            assert offsets[index] == offset, (
                f"number {number} of {name} was acknowledged at {topic}-{partition}@{offset}, "
                f"and is at {offsets[index]}"
            )
        for place, number, _ in self._acknowledged:  # a writer's acknowledgements come in order
            below = number - self._forgotten[place]
            if below > 0:
                del self._offsets[place][:below]
                self._forgotten[place] = number
        self._acknowledged.clear()


class Newest:
    """The compacted topic: of each key the newest, whatever was compacted meanwhile.

    The numbers 0, 1, 2, … go round over the keys, so where the log ends tells what each of them must be.
    """

    def __init__(self, keys: int, tombstone_every: int) -> None:
        self._keys = keys
        self._tombstone_every = tombstone_every
        self.acknowledged = -1

    def check(self, found: list[tuple[bytes, int, bool]]) -> None:
        """The whole topic as it was read: key, number, and whether it is a deletion."""
        newest: dict[bytes, int] = {}
        last = -1
        for key, number, is_deletion in found:
            assert key == b"key-%d" % (number % self._keys), f"number {number} under {key!r}"
            assert is_deletion == (number % self._tombstone_every == 0), f"number {number}: {is_deletion}"
            assert number > last, f"number {number} comes after {last}"
            last = number
            newest[key] = number
        assert last >= self.acknowledged, f"{self.acknowledged} was acknowledged, the log ends with {last}"
        for number in range(max(0, last - self._keys + 1), last + 1):
            key = b"key-%d" % (number % self._keys)
            held = newest.get(key)
            assert held == number, f"{key!r} is {held}, its newest is {number}"


class Derived:
    """The records that a transform made: one of each record of its source, in the order of each partition."""

    def __init__(self) -> None:
        self._ends: dict[int, int] = defaultdict(int)

    def found(self, partition: int, offset: int) -> None:
        """The next record that was made of *partition* of the source."""
        end = self._ends[partition]
        assert offset == end, f"what was made of {partition}@{offset} comes where {end} is due"
        self._ends[partition] = end + 1

    def end(self, partition: int) -> int:
        """The offset behind what was made."""
        return self._ends[partition]


class Pairs:
    """The records that come in pairs, one in each of two topics, one pair for each message of a queue."""

    def __init__(self) -> None:
        self._single: dict[tuple[int, int], str] = {}  # the topic that has it
        self._paired: dict[int, set[int]] = defaultdict(set)
        self._below: dict[int, int] = defaultdict(int)  # all offsets below it are paired

    def found(self, topic: str, partition: int, offset: int) -> None:
        place = (partition, offset)
        is_paired = offset < self._below[partition] or offset in self._paired[partition]
        is_twice = is_paired or self._single.get(place) == topic
        assert not is_twice, f"{place} is twice in {topic!r}"
        if place not in self._single:
            self._single[place] = topic
            return
        del self._single[place]
        self._paired[partition].add(offset)
        while self._below[partition] in self._paired[partition]:
            self._paired[partition].remove(self._below[partition])
            self._below[partition] += 1

    def check_complete(self, ends: dict[int, int]) -> None:
        """Nobody is at work any more: every message below *ends* has its pair, and there are no others."""
        assert not self._single, f"in one topic only: {self._single}"
        beyond = {partition: sorted(offsets) for partition, offsets in self._paired.items() if offsets}
        assert not beyond, f"paired behind what is not: {beyond}"
        below = {partition: self._below[partition] for partition in ends}
        assert below == ends, f"pairs up to {below}, messages up to {ends}"
