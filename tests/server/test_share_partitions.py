"""The queues of share groups as threads of the server use them: full disks, closed sessions, rules that change."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from kio.schema.errors import ErrorCode

from logbroker.queues.settlement import Settlement
from logbroker.server.error_codes import RefusedError
from logbroker.server.raw_reader import ReaderPool
from logbroker.server.share_partitions import IDLE_S, SharePartitions, Wish
from logbroker.server.share_sessions import ShareSession, ShareSessions
from logbroker.subscriptions import Subscription
from logbroker.transaction import Transactions
from logbroker.transaction_coordinator import TransactionCoordinator
from logbroker_storage.errors import TopicNotFoundError
from logbroker_storage.files import OsFiles
from logbroker_storage.testing import FaultyFiles
from tests.queues.desk import QueueDesk

JOURNAL_LOG = "__journal-0/00000000000000000000.log"
PLACE, OTHER = ("jobs", 0), ("jobs", 1)
EVERYTHING = Wish(max_messages=1000, min_bytes=1, max_bytes=1 << 20, is_strict=True, deadline_s=math.inf)


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles(OsFiles())


class Counter:
    """The partitions of one server, and sessions of the group "workers"."""

    def __init__(self, path: Path, files: FaultyFiles) -> None:
        self.desk = QueueDesk(path, files=files)
        directory = self.desk.directory
        self.transactions = Transactions(directory, TransactionCoordinator(directory))
        self.readers = ReaderPool()
        self.partitions = SharePartitions(directory, self.transactions, self.readers)
        self.sessions = ShareSessions()

    @property
    def subscription(self) -> Subscription:
        return self.desk.broker._subscriptions.get("workers")

    def session(self, member_id: str = "m") -> ShareSession:
        return self.sessions.begin("workers", member_id, "a connection", subscription_id=self.subscription.id)

    def take(
        self, session: ShareSession, *places: tuple[str, int], wish: Wish = EVERYTHING
    ) -> list[tuple[int, ...]]:
        """Ranges with their delivery counts, of all *places* together."""
        found = self.partitions.acquire(session, self.subscription, places or (PLACE,), wish)
        assert found.errors == {}
        return [one for acquired in found.acquired.values() for one in acquired.ranges]

    def settle(self, session: ShareSession, **settlements: Settlement) -> dict[int, ErrorCode]:
        """By partition, as ``p0=…``; the errors by number."""
        wanted = {("jobs", int(name[1:])): settlement for name, settlement in settlements.items()}
        errors = self.partitions.settle(session, self.subscription, wanted)
        return {place[1]: code for place, code in errors.items()}

    def close(self) -> None:
        self.partitions.close()
        self.transactions.close()
        self.readers.close()
        self.desk.close()


@pytest.fixture
def counter(tmp_path: Path, files: FaultyFiles) -> Iterator[Counter]:
    counter = Counter(tmp_path / "data", files)
    yield counter
    files.heal()
    counter.close()


def test_on_a_full_disk_nothing_is_settled_and_all_stays_in_the_members_hands(
    counter: Counter, files: FaultyFiles
):
    counter.desk.queue_of(partitions=2, dead_letter="jobs.dead").put("a", "b", "c", partition=0).put(
        "d", partition=1
    )
    session = counter.session()
    assert counter.take(session, PLACE, OTHER) == [(0, 2, 1), (0, 0, 1)]
    for write in ("pwrite", "pwritev"):
        files.fail(write, path=JOURNAL_LOG, error=errno.ENOSPC, forever=True)
    failed = ErrorCode.kafka_storage_error
    settlements = {
        "p0": Settlement(finished=[(0, 0)], rejected=[(1, 1)]),
        "p1": Settlement(finished=[(0, 0)]),
    }
    assert counter.settle(session, **settlements) == {0: failed, 1: failed}
    assert counter.desk.broker.subscription("workers").in_flight == 4
    files.heal()
    assert counter.settle(session, **settlements) == {}
    assert (counter.desk.lag(), counter.desk.deaths()) == (1, [("b", "rejected by a share consumer")])


def test_what_was_settled_is_there_when_the_process_dies_right_behind_it(counter: Counter):
    counter.desk.queue_of().put("a", "b", "c")
    session = counter.session()
    counter.take(session)
    assert counter.settle(session, p0=Settlement(finished=[(0, 0), (2, 2)])) == {}
    counter.desk.crash()
    assert counter.desk.reopen(without_view=True).left() == ["b"]


def test_a_session_that_was_closed_meanwhile_gets_nothing_and_no_delivery_is_counted(counter: Counter):
    counter.desk.queue_of().put("a", "b")
    session = counter.session()
    counter.sessions.close("workers", "m")
    assert counter.take(session) == []
    assert counter.take(counter.session("other")) == [(0, 1, 1)]


def test_only_what_the_session_itself_holds_is_given_up(counter: Counter):
    counter.desk.queue_of().put("a", "b")
    one, other = counter.session("one"), counter.session("other")
    limited = EVERYTHING._replace(max_messages=1)
    assert counter.take(one, wish=limited) == [(0, 0, 1)]
    assert counter.take(other, wish=limited) == [(1, 1, 1)]
    assert counter.partitions.give_up(counter.subscription, one, [PLACE]) == 1
    assert counter.partitions.give_up(counter.subscription, one, [PLACE]) == 0
    assert counter.take(one) == [(0, 0, 2)]


def test_rules_that_change_hold_from_the_next_fetch_on(counter: Counter):
    counter.desk.queue_of(lease=10.0).put("a", "b")
    session = counter.session()
    before = counter.partitions.of(counter.subscription, PLACE)
    assert counter.partitions.of(counter.subscription, PLACE) is before
    counter.desk.broker.delete_subscription("workers")
    counter.desk.subscription(filter='value == "b"')
    assert counter.take(session) == [(1, 1, 1)]
    assert counter.partitions.of(counter.subscription, PLACE) is not before


def test_partitions_that_nobody_asks_for_are_closed_and_opened_again(counter: Counter):
    counter.desk.queue_of(lease=1000.0, dead_letter="jobs.dead").put("a", "b")
    session = counter.session()
    limited = EVERYTHING._replace(max_messages=1)
    counter.take(session, wish=limited)
    opened = counter.partitions.of(counter.subscription, PLACE)
    counter.partitions.close_idle()
    assert counter.partitions.of(counter.subscription, PLACE) is opened
    counter.desk.advance(IDLE_S + 1)
    counter.partitions.close_idle()
    assert counter.partitions.of(counter.subscription, PLACE) is not opened
    assert counter.take(session, wish=limited) == [(1, 1, 1)]


def test_a_partition_that_is_not_the_groups_or_not_there_is_none(counter: Counter):
    counter.desk.queue_of().topic("other")
    with pytest.raises(RefusedError):
        counter.partitions.of(counter.subscription, ("other", 0))
    with pytest.raises(TopicNotFoundError):
        counter.partitions.of(counter.subscription, ("jobs", 9))
    found = counter.partitions.acquire(counter.session(), counter.subscription, [("jobs", 9)], EVERYTHING)
    assert found.errors == {("jobs", 9): ErrorCode.unknown_topic_or_partition}


def test_a_glance_tells_that_there_is_nothing_and_until_when(counter: Counter):
    counter.desk.queue_of(lease=10.0)
    session = counter.session()
    assert counter.take(session) == []
    nothing = counter.partitions.glance(counter.subscription, [PLACE])
    assert nothing is not None
    assert (nothing.acquired, nothing.next_due_s) == ({}, None)
    counter.desk.put("a")
    assert counter.partitions.glance(counter.subscription, [PLACE]) is None
    counter.take(session)
    nothing = counter.partitions.glance(counter.subscription, [PLACE])
    assert nothing is not None
    assert nothing.next_due_s is not None
    assert nothing.next_due_s <= 10.0
    counter.desk.advance(10)
    assert counter.partitions.glance(counter.subscription, [PLACE]) is None
