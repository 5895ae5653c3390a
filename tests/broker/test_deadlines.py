"""Times that users give: a wait may be as long as it takes, what is stored has a limit that the error names."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import logbroker
from logbroker import InvalidRequestError

HUGE = pytest.param(10**400, id="huge")  # no float comes near to it


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[logbroker.Broker]:
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("t")
        yield broker


@pytest.mark.parametrize("seconds", [math.inf, 1e12, HUGE, threading.TIMEOUT_MAX])
def test_a_wait_may_be_as_long_as_it_takes(broker, seconds):
    with broker.producer(linger=0.2, buffer_bytes=1000, max_block=seconds) as producer:
        for _ in range(20):
            receipt = producer.send("t", b"x" * 500)
        assert receipt.result(seconds).offset == 19
        asking = [threading.Thread(target=producer.send("t", b"x").result, args=(seconds,)) for _ in range(4)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(20)
        producer.flush(seconds)
    with broker.consumer("t", group="g", max_poll_interval=seconds) as consumer:
        assert consumer.poll(100, timeout=seconds)


@pytest.mark.parametrize("linger", [math.inf, 1e10, HUGE])
def test_a_record_may_wait_for_others_as_long_as_it_takes(broker, linger):
    with broker.producer(linger=linger) as producer:
        receipt = producer.send("t", b"a")
        linger_thread = producer._delivery._thread
        while not linger_thread._waiting:
            assert linger_thread._thread.is_alive()
        assert not receipt.done
        producer.flush()
        assert receipt.result(0).offset == 0


@pytest.mark.parametrize("seconds", [math.inf, 1e12, 1e18, HUGE, 3_000_000])
def test_a_time_that_is_stored_has_a_limit(broker, seconds):
    with pytest.raises(InvalidRequestError, match=r"session_timeout.*up to 2147483 seconds"):
        broker.consumer("t", group="g", session_timeout=seconds)
    with pytest.raises(InvalidRequestError, match=r"timeout.*up to 2147483 seconds"):
        broker.transaction("x", timeout=seconds)
