"""What a power cut may leave of a disk: any part of what was not synced.

    of                        may survive                                     which are tried
    a synced file             what it held then                               always
    each write since          whole · not at all · only its length (zeros)    subsets: all when few, else each alone,
                              · its first 1, 512 or 4096 bytes, the rest        all but each, and random ones; the last
                              missing or zeros · all but those                  write torn in every way
    each cut, each growth     or not                                          with the writes
    each change of a          or not, but never without the changes to the    as the writes
      directory's names         same names before it

Writes survive independently, in any combination, as do changes of names; a file's content and the name that
leads to it have nothing to do with each other. That is all that POSIX leaves to rely on, and stricter than any
one file system: ext4 and XFS journal changes of names in order, and a disk keeps a sector's writes in order.
What is assumed all the same: a rename is atomic, a sync is kept, and what was synced stays as it was.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping

from .disk import apply
from .operations import ROOT, Create, Operation, Rename, Resize, Sync, Told, Tree, Write

LOST, KEPT, ZEROS = 0, 1, 2  # of one change; of a torn write ``_torn``
TORN_AT = (1, 512, 4096)
FEW = 6  # changes of which every subset is tried
SOME = 24  # … of which each alone is left out, and alone kept

Outcomes = tuple[int, ...]
Survivors = Mapping[int, Outcomes]
"""By inode, what becomes of each change since its last sync. Of an inode that is missing nothing survives."""


PREFIX, PREFIX_AND_ZEROS, REST = 0, 1, 2


def _torn(size: int, kind: int) -> int:
    """The outcome of a write of which *size* bytes make one part."""
    return size * 4 + kind


class File:
    """A file on the medium."""

    def __init__(self, synced: bytes) -> None:
        self.synced = synced
        self.changes: list[Write | Resize] = []
        self._found: dict[Outcomes, tuple[bytes, bytes]] = {}

    def add(self, change: Write | Resize) -> None:
        self.changes.append(change)
        self._found.clear()

    def sync(self) -> None:
        self.synced = self.found((KEPT,) * len(self.changes))[0]
        self.changes = []
        self._found.clear()

    def found(self, outcomes: Outcomes) -> tuple[bytes, bytes]:
        """The content that is found with these *outcomes*, and its digest."""
        known = self._found.get(outcomes)
        if known is None:
            content = bytearray(self.synced)
            for change, outcome in zip(self.changes, outcomes, strict=False):
                if outcome == KEPT:
                    apply(content, change)
                elif outcome != LOST and isinstance(change, Write):
                    for piece in _pieces(change, outcome, len(content)):
                        apply(content, piece)
            known = self._found[outcomes] = bytes(content), hashlib.blake2b(content, digest_size=16).digest()
        return known


def _pieces(write: Write, outcome: int, size: int) -> list[Write | Resize]:
    """What is left of a torn *write* to a file of *size* bytes."""
    end = write.position + len(write.data)
    longer: list[Write | Resize] = [Resize(write.inode, end)] if end > size else []
    if outcome == ZEROS:
        return longer
    at, kind = divmod(outcome, 4)
    if kind == REST:
        return [*longer, Write(write.inode, write.position + at, write.data[at:])]
    first = Write(write.inode, write.position, write.data[:at])
    return [*longer, first] if kind == PREFIX_AND_ZEROS else [first]


class Directory:
    """A directory on the medium."""

    def __init__(self, synced: dict[str, int]) -> None:
        self.synced = synced
        self.changes: list[Rename] = []

    def add(self, change: Rename) -> None:
        self.changes.append(change)

    def sync(self) -> None:
        self.synced = self.found((KEPT,) * len(self.changes))
        self.changes = []

    def found(self, outcomes: Outcomes) -> dict[str, int]:
        names = dict(self.synced)
        for change, outcome in zip(self.changes, outcomes, strict=False):
            if outcome == KEPT:
                for name, inode in change.names:
                    if inode is None:
                        names.pop(name, None)
                    else:
                        names[name] = inode
        return names

    def possible(self, outcomes: Outcomes, *, keep: int | None = None) -> Outcomes:
        """*outcomes*, with every change lost that needs one that is lost; with *keep*, those that it needs are kept."""
        chosen = [KEPT if outcome else LOST for outcome in outcomes]
        if keep is not None:
            wanted = {name for name, _ in self.changes[keep].names}
            chosen[keep] = KEPT
            for index in range(keep - 1, -1, -1):
                names = {name for name, _ in self.changes[index].names}
                if names & wanted:
                    chosen[index] = KEPT
                    wanted |= names
        lost: set[str] = set()
        for index, change in enumerate(self.changes):
            names = {name for name, _ in change.names}
            if chosen[index] == LOST or names & lost:
                chosen[index] = LOST
                lost |= names
        return tuple(chosen)


class Medium:
    """The disk below the page cache: what is on it for certain, and what may be."""

    def __init__(self, inodes: Mapping[int, bytes | dict[str, int]]) -> None:
        self.nodes: dict[int, File | Directory] = {
            inode: Directory(dict(content)) if isinstance(content, dict) else File(content)
            for inode, content in inodes.items()
        }
        self._unsynced: list[int] | None = None
        # Directories below which all is synced, as they are found.
        self._settled: dict[int, tuple[Tree, bytes]] = {}

    def do(self, operation: Operation) -> None:
        """Follow one operation of the program."""
        if isinstance(operation, Told):
            return
        self._unsynced = None
        self._settled.clear()
        if isinstance(operation, Create):
            self.nodes[operation.inode] = Directory({}) if operation.is_directory else File(b"")
        elif isinstance(operation, Sync):
            self.nodes[operation.inode].sync()
        else:
            self.nodes[operation.inode].add(operation)  # type: ignore[arg-type]

    def tree(self, survivors: Survivors) -> tuple[Tree, bytes]:
        """What is found of the whole disk, and its digest."""
        tree, digest, _ = self._directory(ROOT, survivors)
        return tree, digest

    def _directory(self, inode: int, survivors: Survivors) -> tuple[Tree, bytes, bool]:
        """The same of one directory, and whether it can only be found so."""
        settled = self._settled.get(inode)
        if settled is not None:
            return *settled, True
        directory = self.nodes[inode]
        assert isinstance(directory, Directory)
        is_settled = not directory.changes
        tree: Tree = {}
        digest = hashlib.blake2b(digest_size=16)
        for name, below in sorted(directory.found(survivors.get(inode, ())).items()):
            node = self.nodes[below]
            if isinstance(node, Directory):
                tree[name], known, is_below_settled = self._directory(below, survivors)
                is_settled = is_settled and is_below_settled
                kind = b"/"
            else:
                tree[name], known = node.found(survivors.get(below, ()))
                is_settled = is_settled and not node.changes
                kind = b"\0"
            digest.update(name.encode() + kind + known)
        if is_settled:
            self._settled[inode] = tree, digest.digest()
        return tree, digest.digest(), is_settled

    def unsynced(self) -> list[int]:
        """The inodes with changes that a power cut may take, which a name may lead to."""
        if self._unsynced is None:
            self._unsynced = self._find_unsynced()
        return self._unsynced

    def _find_unsynced(self) -> list[int]:
        reached = {ROOT}
        frontier = [ROOT]
        while frontier:
            node = self.nodes[frontier.pop()]
            if isinstance(node, Directory):
                for below in [
                    *node.synced.values(),
                    *(inode for change in node.changes for _, inode in change.names if inode is not None),
                ]:
                    if below not in reached:
                        reached.add(below)
                        frontier.append(below)
        return sorted(inode for inode in reached if self.nodes[inode].changes)

    # What may survive -----------------------------------------------------------------------------

    def everything(self) -> dict[int, Outcomes]:
        return {inode: (KEPT,) * len(self.nodes[inode].changes) for inode in self.unsynced()}

    def obvious(self) -> Iterator[Survivors]:
        """Everything but one file or directory, and only one."""
        everything = self.everything()
        for inode in everything:
            yield {other: outcomes for other, outcomes in everything.items() if other != inode}
        for inode, outcomes in everything.items():
            yield {inode: outcomes}

    def torn(self, last: Operation) -> Iterator[Survivors]:
        """With and without the rest, the *last* write in every way that it can be torn."""
        if not isinstance(last, Write):
            return
        everything = self.everything()
        if last.inode not in everything:
            return
        before = everything[last.inode][:-1]
        sizes = [size for size in TORN_AT if size < len(last.data)]
        cuts = [
            ZEROS,
            *(_torn(size, kind) for size in sizes for kind in (PREFIX, PREFIX_AND_ZEROS, REST)),
        ]
        for cut in cuts:
            yield everything | {last.inode: (*before, cut)}
            yield {last.inode: (*before, cut)}

    def single(self) -> Iterator[Survivors]:
        """Every subset of the changes when they are few; all but each, and each alone, when they are not many."""
        everything = self.everything()
        units = [(inode, index) for inode, outcomes in everything.items() for index in range(len(outcomes))]
        if len(units) <= FEW:
            for flags in itertools.product((LOST, KEPT), repeat=len(units)):
                yield self._chosen(everything, dict(zip(units, flags, strict=True)))
        elif len(units) <= SOME:
            for unit in units:
                yield self._chosen(everything, {other: KEPT for other in units if other != unit})
            for unit in units:
                yield self._chosen(everything, {unit: KEPT}, keep=unit)

    def _chosen(
        self,
        everything: Mapping[int, Outcomes],
        kept: Mapping[tuple[int, int], int],
        keep: tuple[int, int] | None = None,
    ) -> dict[int, Outcomes]:
        chosen: dict[int, Outcomes] = {}
        for inode, outcomes in everything.items():
            picked = tuple(kept.get((inode, index), LOST) for index in range(len(outcomes)))
            node = self.nodes[inode]
            if isinstance(node, Directory):
                only = keep[1] if keep is not None and keep[0] == inode else None
                picked = node.possible(picked, keep=only)
            chosen[inode] = picked
        return chosen

    def random(self, rng: random.Random) -> Survivors:
        """Any part of it."""
        likely = rng.choice((0.1, 0.5, 0.5, 0.9))
        is_torn = rng.random() < 0.5
        chosen: dict[int, Outcomes] = {}
        for inode in self.unsynced():
            node = self.nodes[inode]
            picked = [KEPT if rng.random() < likely else LOST for _ in node.changes]
            if isinstance(node, Directory):
                chosen[inode] = node.possible(tuple(picked))
                continue
            if is_torn and rng.random() < 0.5:
                index = rng.randrange(len(picked))
                change = node.changes[index]
                if isinstance(change, Write):
                    picked[index] = _random_tear(change, rng)
            chosen[inode] = tuple(picked)
        return chosen


def _random_tear(write: Write, rng: random.Random) -> int:
    sizes = [size for size in TORN_AT if size < len(write.data)]
    if not sizes or rng.random() < 0.3:
        return ZEROS
    return _torn(rng.choice(sizes), rng.choice((PREFIX, PREFIX_AND_ZEROS, REST)))


class Depth(enum.IntEnum):
    """How much is tried at each operation."""

    ALL_OR_NOTHING = 0
    OBVIOUS = 1  # also everything but one file or directory, and only one
    EVERYTHING = 2


def states(medium: Medium, last: Operation, rng: random.Random, depth: Depth) -> Iterator[Survivors]:
    """What may survive a power cut behind the *last* operation, the likeliest to tell first.

    Of ``EVERYTHING`` there is no end.
    """
    yield {}
    yield medium.everything()
    if depth >= Depth.OBVIOUS:
        yield from medium.obvious()
    if depth >= Depth.EVERYTHING:
        yield from medium.torn(last)
        yield from medium.single()
        while True:
            yield medium.random(rng)


def described(medium: Medium, survivors: Survivors) -> Iterable[str]:
    """Which changes are lost, for people."""
    for inode in medium.unsynced():
        node = medium.nodes[inode]
        outcomes = survivors.get(inode, (LOST,) * len(node.changes))
        for change, outcome in zip(node.changes, outcomes, strict=True):
            if outcome == KEPT:
                continue
            what = (
                f"names {change.names}"
                if isinstance(change, Rename)
                else f"{len(change.data)} bytes at {change.position}"
                if isinstance(change, Write)
                else f"size {change.size}"
            )
            how = (
                "lost"
                if outcome == LOST
                else "only its length"
                if outcome == ZEROS
                else f"torn {divmod(outcome, 4)}"
            )
            yield f"{how}: {what} of inode {inode}"
