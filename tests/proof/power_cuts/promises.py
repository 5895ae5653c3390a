"""What the workers were told, folded from their diaries: each line was written behind the acknowledgement.

produced TOPIC PARTITION NAME SEQUENCE    all of this name's records up to this one are acknowledged
seen PARTITION OFFSET VALUE               a consumer was given this record of ``orders``
committed PARTITION OFFSET                the group ``readers`` goes on here, or later
copied PARTITION OFFSET                   a transaction was committed with its group at this offset
identified NUMBER PARTITION OFFSET        the record with this id is there
settling PARTITION OFFSET HOW             may be settled from here on: nobody knows
settled PARTITION OFFSET                  and is, for good
priced KEY NUMBER                         the newest record of the key has this number, or a larger one
trimmed OFFSET                            the records below it are deleted
created NAME · deleting NAME · deleted NAME
synced TOPIC PARTITION OFFSET             the view says that it is on the disk up to here
error NAME                                and then it ended
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

Place = tuple[int, int]  # partition and offset


@dataclass
class Promises:
    """Everything that was acknowledged on one disk so far."""

    produced: dict[tuple[str, int, str], int] = field(default_factory=dict)
    seen: dict[Place, bytes] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    copied: dict[int, int] = field(default_factory=dict)
    identified: dict[int, Place] = field(default_factory=dict)
    settling: dict[Place, str] = field(default_factory=dict)
    settled: dict[Place, str] = field(default_factory=dict)
    priced: dict[int, int] = field(default_factory=dict)
    trimmed: int = 0
    topics: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    synced: dict[tuple[str, int], int] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    count: int = 0

    def take(self, lines: Iterable[str]) -> None:
        """Fold the lines of one diary."""
        for line in lines:
            kind, *words = line.split(" ")
            getattr(self, f"_{kind}")(*words)
            self.count += 1

    def _produced(self, topic: str, partition: str, name: str, sequence: str) -> None:
        self.produced[topic, int(partition), name] = int(sequence)

    def _seen(self, partition: str, offset: str, value: str) -> None:
        self.seen[int(partition), int(offset)] = value.encode()

    def _committed(self, partition: str, offset: str) -> None:
        self.committed[int(partition)] = int(offset)

    def _copied(self, partition: str, offset: str) -> None:
        self.copied[int(partition)] = int(offset)

    def _identified(self, number: str, partition: str, offset: str) -> None:
        self.identified[int(number)] = (int(partition), int(offset))

    def _settling(self, partition: str, offset: str, how: str) -> None:
        self.settling[int(partition), int(offset)] = how

    def _settled(self, partition: str, offset: str) -> None:
        place = (int(partition), int(offset))
        self.settled[place] = self.settling.pop(place)

    def _priced(self, key: str, number: str) -> None:
        self.priced[int(key)] = int(number)

    def _trimmed(self, offset: str) -> None:
        self.trimmed = int(offset)

    def _created(self, name: str) -> None:
        self.topics.add(name)

    def _deleting(self, name: str) -> None:
        self.topics.discard(name)

    def _deleted(self, name: str) -> None:
        self.deleted.add(name)

    def _synced(self, topic: str, partition: str, offset: str) -> None:
        self.synced[topic, int(partition)] = max(int(offset), self.synced.get((topic, int(partition)), 0))

    def _error(self, name: str) -> None:
        self.errors[name] += 1
