"""Where a subscription begins, and where it is moved to: always inside the log."""

from __future__ import annotations

import pytest

import logbroker
from logbroker.errors import InvalidRequestError


@pytest.fixture
def broker(tmp_path):
    """A topic of ten messages."""
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("jobs")
        with broker.producer() as producer:
            producer.send_many("jobs", [b"%d" % number for number in range(10)])
        yield broker


def start_offset(broker, name: str = "workers") -> int:
    return broker.subscription(name).partitions[0].start_offset


@pytest.mark.parametrize("kind", ["queue", "stream"])
def test_a_start_behind_the_end_leaves_out_nothing_that_is_sent_later(broker, kind):
    broker.create_subscription("workers", topic="jobs", kind=kind, start={0: 99})
    assert start_offset(broker) == 10


def test_a_start_below_what_was_deleted_is_the_log_start(broker):
    broker.delete_records("jobs", {0: 4})
    broker.create_subscription("workers", topic="jobs", start={0: 1})
    assert start_offset(broker) == 4


@pytest.mark.parametrize(("shift", "offset"), [(-2, 1), (2, 5), (-100, 0), (100, 10)])
def test_a_shift_counts_from_the_first_message_that_is_not_done(broker, shift, offset):
    broker.create_subscription("workers", topic="jobs")
    with broker.queue(subscription="workers") as queue:
        queue.receive_many(3, timeout=1.0).accept()
    assert broker.reset_subscription("workers", shift, shift=True, dry_run=True) == {("jobs", 0): offset}
    assert start_offset(broker) == 3
    broker.reset_subscription("workers", shift, shift=True)
    assert start_offset(broker) == offset


def test_only_numbers_can_be_added(broker):
    broker.create_subscription("workers", topic="jobs")
    with pytest.raises(InvalidRequestError, match="shift=True"):
        broker.reset_subscription("workers", "latest", shift=True)
