"""The checker of histories catches what it is to catch.

Each kind of fault is planted in a history that is sound; and real clients have to do with servers that are broken.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from .history.checker import check
from .history.findings import Kind
from .history.nemesis import Fault
from .history.operations import (
    NEVER_NS,
    Commit,
    Dropped,
    FinalRead,
    History,
    Isolation,
    Look,
    Outcome,
    Placed,
    Polled,
    Reader,
    Send,
    Transaction,
)
from .history.rounds import Round

P = "t-0"
OK, FAILED, UNKNOWN = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN
COMMITTED, UNCOMMITTED = Isolation.COMMITTED, Isolation.UNCOMMITTED

Log = list[tuple[int, str]]


@dataclass(frozen=True)
class Story:
    """A history in the making. The log is what every final reader sees, unless some are said to see another."""

    sends: tuple[Send, ...] = ()
    transactions: tuple[Transaction, ...] = ()
    readers: tuple[Reader, ...] = ()
    commits: tuple[Commit, ...] = ()
    looks: tuple[Look, ...] = ()
    log: Log = field(default_factory=list)
    committed: Log | None = None
    others: Log | None = None

    def but(self, **changes: Any) -> Story:
        return replace(self, **changes)

    def kinds(self) -> set[Kind]:
        committed = self.log if self.committed is None else self.committed
        reads = [
            FinalRead("first", UNCOMMITTED, {P: self.log}),
            FinalRead("first", COMMITTED, {P: committed}),
        ]
        if self.others is not None:
            reads.append(FinalRead("other", UNCOMMITTED, {P: self.others}))
        history = History(
            {send.value: send for send in self.sends},
            {transaction.name: transaction for transaction in self.transactions},
            self.readers,
            self.commits,
            self.looks,
        )
        return {finding.kind for finding in check(history, reads)}


def sent(number: int, offset: int | None, outcome: Outcome = OK, **fields: Any) -> Send:
    """Send *number* of client "a", which begins at ten times its number and takes 5."""
    begun_ns = 10 * number
    ended_ns = NEVER_NS if outcome is UNKNOWN else begun_ns + 5
    return Send("a", number, P, begun_ns, ended_ns, outcome, offset)._replace(**fields)


def polled(*records: tuple[int, str], at_ns: int = 1000) -> Polled:
    return Polled(at_ns, {P: list(records)})


def reader(*steps: Placed | Dropped | Polled, isolation: Isolation = UNCOMMITTED, group: str = "") -> Reader:
    return Reader("r", isolation, group, [Placed(0, {P: 0}), *steps])


def record(number: int) -> tuple[int, str]:
    return number, f"a {number}"


def commit(offset: int, begun_ns: int, ended_ns: int, outcome: Outcome = OK) -> Commit:
    return Commit("r", "g", {P: offset}, begun_ns, ended_ns, outcome)


def look(offset: int, begun_ns: int, ended_ns: int) -> Look:
    return Look("r", "g", {P: offset}, begun_ns, ended_ns)


THREE = Story(sends=tuple(sent(number, number) for number in range(3)), log=[record(0), record(1), record(2)])
SAVED = Transaction("a/0", 100, 110, is_commit=True, outcome=OK)
ABORTED = Transaction("a/0", 100, 110, is_commit=False, outcome=OK)
REFUSED = Transaction("a/0", 100, 110, is_commit=True, outcome=FAILED)
IN_DOUBT = Transaction("a/0", 100, is_commit=True)
LEFT = Transaction("a/0")
ONE = Story(sends=(sent(0, 0, transaction="a/0"), sent(1, 1, transaction="a/0")), log=[record(0), record(1)])

# Sound ----------------------------------------------------------------------------------------------------

SOUND = {
    "nothing": Story(),
    "all acknowledged, and there": THREE,
    "unknown, and not there": THREE.but(sends=(*THREE.sends, sent(3, None, UNKNOWN))),
    "unknown, and there": THREE.but(
        sends=(*THREE.sends, sent(3, None, UNKNOWN)), log=[*THREE.log, record(3)]
    ),
    "unknown, and there late": Story(
        sends=(sent(0, None, UNKNOWN), sent(1, 0), sent(2, 1)), log=[(0, "a 1"), (1, "a 2"), (2, "a 0")]
    ),
    "not idempotent, and there twice": THREE.but(
        sends=tuple(send._replace(is_once=False) for send in THREE.sends), log=[*THREE.log, (3, "a 1")]
    ),
    "refused, and not there": THREE.but(sends=(*THREE.sends, sent(3, None, FAILED))),
    "at the same time, in either order": Story(
        sends=(sent(0, 1)._replace(client="b", ended_ns=20), sent(1, 0)), log=[(0, "a 1"), (1, "b 0")]
    ),
    "offsets between them are markers": THREE.but(
        sends=(sent(0, 0), sent(1, 5)),
        log=[(0, "a 0"), (5, "a 1")],
        readers=(reader(polled((0, "a 0"), (5, "a 1"))),),
    ),
    "committed, and visible": ONE.but(transactions=(SAVED,)),
    "aborted, and not visible": ONE.but(transactions=(ABORTED,), committed=[]),
    "in doubt, and visible": ONE.but(transactions=(IN_DOUBT,)),
    "in doubt, and not visible": ONE.but(transactions=(IN_DOUBT,), committed=[]),
    "its client died": ONE.but(transactions=(LEFT,), committed=[]),
    "aborted, and read uncommitted": ONE.but(
        transactions=(ABORTED,), committed=[], readers=(reader(polled(record(0), record(1))),)
    ),
    "read in pieces": THREE.but(readers=(reader(polled(record(0)), polled(record(1), record(2))),)),
    "read again after a seek": THREE.but(
        readers=(reader(polled(record(0), record(1)), Placed(0, {P: 1}), polled(record(1), record(2))),)
    ),
    "committed and looked up": THREE.but(
        readers=(reader(polled(record(0), record(1)), group="g"),),
        commits=(commit(1, 10, 20), commit(2, 30, 40)),
        looks=(look(-1, 0, 5), look(1, 12, 14), look(1, 22, 24), look(1, 32, 34), look(2, 50, 60)),
    ),
    "a commit in doubt counts late": THREE.but(
        readers=(reader(polled(record(0), record(1)), group="g"),),
        commits=(commit(1, 10, NEVER_NS, UNKNOWN), commit(2, 30, 40)),
        looks=(look(1, 50, 60),),
    ),
}


@pytest.mark.parametrize("story", SOUND.values(), ids=SOUND)
def test_a_sound_history_gives_no_findings(story: Story) -> None:
    assert story.kinds() == set()


# Broken ---------------------------------------------------------------------------------------------------

COPIES = (sent(0, 0, source=("s-0", 7)), sent(1, 1, source=("s-0", 7)))

BROKEN: dict[str, tuple[Kind, Story]] = {
    "acknowledged, and not there": (Kind.LOST_WRITE, THREE.but(log=[record(0), record(1)])),
    "read once, and not there": (
        Kind.LOST_WRITE,
        THREE.but(
            sends=(*THREE.sends, sent(3, None, UNKNOWN)), readers=(reader(polled(*THREE.log, record(3))),)
        ),
    ),
    "committed, and one is not visible": (
        Kind.LOST_WRITE,
        ONE.but(transactions=(SAVED,), committed=[record(0)]),
    ),
    "there twice": (Kind.DUPLICATE, THREE.but(log=[*THREE.log, (3, "a 1")])),
    "copied twice": (Kind.DUPLICATE, Story(sends=COPIES, log=[record(0), record(1)])),
    "sent by nobody": (Kind.INVENTED, THREE.but(log=[*THREE.log, (3, "b 9")])),
    "sent to another place": (
        Kind.INVENTED,
        THREE.but(sends=(*THREE.sends, sent(3, None, UNKNOWN, place="t-1")), log=[*THREE.log, record(3)]),
    ),
    "read, and sent by nobody": (Kind.INVENTED, THREE.but(readers=(reader(polled(*THREE.log, (3, "b 9"))),))),
    "acknowledged elsewhere": (
        Kind.INCONSISTENT_OFFSETS,
        THREE.but(sends=(sent(0, 0), sent(1, 2), sent(2, 1))),
    ),
    "read elsewhere": (
        Kind.INCONSISTENT_OFFSETS,
        THREE.but(readers=(reader(polled((0, "a 0"), (1, "a 2"), (2, "a 1"))),)),
    ),
    "refused, and there": (
        Kind.ABORTED_READ,
        THREE.but(sends=(*THREE.sends, sent(3, None, FAILED)), log=[*THREE.log, record(3)]),
    ),
    "aborted, and visible": (Kind.ABORTED_READ, ONE.but(transactions=(ABORTED,))),
    "its commit was refused, and it is visible": (Kind.ABORTED_READ, ONE.but(transactions=(REFUSED,))),
    "aborted, and read for a while": (
        Kind.ABORTED_READ,
        ONE.but(
            transactions=(ABORTED,), committed=[], readers=(reader(polled(record(0)), isolation=COMMITTED),)
        ),
    ),
    "read before the commit": (
        Kind.EARLY_READ,
        ONE.but(transactions=(SAVED,), readers=(reader(polled(*ONE.log, at_ns=99), isolation=COMMITTED),)),
    ),
    "in doubt, and half of it visible": (
        Kind.TORN_TRANSACTION,
        ONE.but(transactions=(IN_DOUBT,), committed=[record(1)]),
    ),
    "a client's records in another order": (
        Kind.REORDERED,
        Story(sends=(sent(0, 1, ended_ns=90), sent(1, 0, ended_ns=90)), log=[(0, "a 1"), (1, "a 0")]),
    ),
    "sent after another was acknowledged, and before it": (
        Kind.REORDERED,
        Story(sends=(sent(0, 1)._replace(client="b"), sent(1, 0)), log=[(0, "a 1"), (1, "b 0")]),
    ),
    "back within a poll": (
        Kind.NON_MONOTONIC_POLL,
        THREE.but(readers=(reader(polled(record(0), record(1), record(0))),)),
    ),
    "back between polls": (
        Kind.NON_MONOTONIC_POLL,
        THREE.but(readers=(reader(polled(record(0), record(1)), polled(record(1))),)),
    ),
    "read what it does not own": (
        Kind.NON_MONOTONIC_POLL,
        THREE.but(readers=(reader(polled(record(0)), Dropped(0, [P]), polled(record(1))),)),
    ),
    "passed by within a poll": (
        Kind.SKIPPED_POLL,
        THREE.but(readers=(reader(polled(record(0), record(2))),)),
    ),
    "passed by between polls": (
        Kind.SKIPPED_POLL,
        THREE.but(readers=(reader(polled(record(0)), polled(record(2))),)),
    ),
    "passed by at the beginning": (Kind.SKIPPED_POLL, THREE.but(readers=(reader(polled(record(1))),))),
    "committed by a group, and read by none": (
        Kind.SKIPPED_POLL,
        THREE.but(readers=(reader(polled(record(0)), group="g"),), commits=(commit(2, 10, 20),)),
    ),
    "not seen by another": (Kind.UNSEEN, THREE.but(others=[record(0), record(2)])),
    "the end not seen by another": (Kind.UNSEEN, THREE.but(others=[record(0), record(1)])),
    "a commit is forgotten": (
        Kind.WRONG_COMMITTED_OFFSET,
        THREE.but(
            readers=(reader(polled(record(0), record(1)), group="g"),),
            commits=(commit(1, 10, 20), commit(2, 30, 40)),
            looks=(look(1, 50, 60),),
        ),
    ),
    "all commits are forgotten": (
        Kind.WRONG_COMMITTED_OFFSET,
        THREE.but(
            readers=(reader(polled(record(0)), group="g"),),
            commits=(commit(1, 10, 20),),
            looks=(look(-1, 50, 60),),
        ),
    ),
    "committed by nobody": (
        Kind.WRONG_COMMITTED_OFFSET,
        THREE.but(readers=(reader(polled(record(0)), group="g"),), looks=(look(1, 50, 60),)),
    ),
}


@pytest.mark.parametrize(("kind", "story"), BROKEN.values(), ids=BROKEN)
def test_a_planted_fault_is_found(kind: Kind, story: Story) -> None:
    assert kind in story.kinds()


def test_every_kind_is_planted() -> None:
    assert {kind for kind, _ in BROKEN.values()} == set(Kind)


# Real servers that are broken -----------------------------------------------------------------------------

MOST_ROUNDS = 8
BROKEN_SERVERS = Path(__file__).parent / "history" / "broken_servers.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "roles", "nemesis", "kind"),
    [
        ("lossy", ["producer"], Fault.SLOW, Kind.LOST_WRITE),
        ("forgetful", ["producer"], Fault.REPEAT, Kind.DUPLICATE),
        ("dirty", ["transactional", "reader"], Fault.SLOW, Kind.ABORTED_READ),
        ("amnesiac", ["producer", "member"], Fault.KILL_CLIENT, Kind.WRONG_COMMITTED_OFFSET),
    ],
)
def test_a_broken_server_is_found_out(
    tmp_path: Path, rng: random.Random, fault: str, roles: list[str], nemesis: Fault, kind: Kind
) -> None:
    """A round may pass the fault by, where the machine is so busy that little happens in it: the next is longer."""
    program = (sys.executable, str(BROKEN_SERVERS), fault)
    found: set[Kind] = set()
    for number in range(MOST_ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = Round(folder, rng, roles=roles, program=program).run([nemesis], 2.0 + number)
        found |= {finding.kind for finding in outcome.findings}
        if kind in found:
            return
    pytest.fail(f"{kind} was not found in {MOST_ROUNDS} rounds, but {found}")
