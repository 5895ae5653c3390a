"""Request and reply in one process: who gets what, and what is told when nobody answers.

Processes that compete and die are in ``tests/e2e/test_request_reply_processes.py``.
"""

from __future__ import annotations

import errno
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import logbroker
from logbroker import (
    Broker,
    Message,
    NoRespondersError,
    Request,
    RequestCounts,
    RequestTimeoutError,
    Responder,
    ResponderCounts,
    ResponderError,
)
from logbroker.errors import (
    ClosedError,
    InvalidRequestError,
    InvalidTopicError,
    SubscriptionNotFoundError,
    TopicNotFoundError,
    WriteFailedError,
)
from logbroker.request_reply.responder import MAX_DELIVERIES
from logbroker.request_reply.topics import REPLY_SEGMENT_BYTES, REQUEST_CONFIG, sweep_reply_topics
from logbroker_storage.files import OsFiles
from logbroker_storage.testing import FaultyFiles

DEADLINE_S = 20.0
TOPIC = "rpc.upper"


@pytest.fixture
def broker(tmp_path) -> Iterator[Broker]:
    with logbroker.open(tmp_path / "data") as broker:
        yield broker


@pytest.fixture
def upper(broker: Broker) -> Responder:
    """A responder that answers with the value in capitals."""

    @broker.responder(TOPIC)
    def upper(request: Request) -> bytes:
        assert request.value is not None
        return request.value.upper()

    return upper


class Gate:
    """A function that answers when the test lets it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.values: list[bytes | None] = []

    def __call__(self, request: Request) -> bytes:
        self.values.append(request.value)
        self.entered.release()
        assert self.opened.wait(DEADLINE_S)
        return b"done"

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=DEADLINE_S)


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def ask_in_thread(broker: Broker, *arguments: Any, **options: Any) -> Callable[[], Any]:
    """Begin a request; what is returned waits for its reply."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(broker.request, *arguments, **options)
    pool.shutdown(wait=False)
    return lambda: future.result(DEADLINE_S)


def internal_topics(broker: Broker) -> list[str]:
    return [name for name in broker._directory.topics() if name.startswith("__")]


# The answer -----------------------------------------------------------------------------------------------


def test_a_request_gets_the_reply_of_a_responder(broker, upper):
    assert broker.request(TOPIC, b"hello").value == b"HELLO"
    assert broker.request_counts == RequestCounts(sent=1, answered=1)
    eventually(lambda: upper.counts == ResponderCounts(answered=1))


def test_the_responder_sees_what_was_sent_and_not_the_headers_that_say_how_to_reply(broker):
    seen: list[Request] = []
    broker.responder("t")(lambda request: seen.append(request))
    broker.request("t", b"v", key=b"k", headers={"a": "1"}, timeout=5)
    (request,) = seen
    assert (request.topic, request.value, request.key) == ("t", b"v", b"k")
    assert request.headers == [("a", b"1")]
    assert request.delivery_count == 1
    assert request.reply_to in internal_topics(broker)
    assert request.reply_by is not None
    assert abs((request.reply_by - request.timestamp).total_seconds() - 5) < 1


def test_an_answer_may_be_a_message_with_a_key_and_headers(broker):
    broker.responder("t")(
        lambda request: Message(b"v", key=b"k", headers={"a": b"1", "reply-error": "not so"})
    )
    reply = broker.request("t", b"")
    assert (reply.value, reply.key, reply.headers) == (b"v", b"k", [("a", b"1")])
    assert abs(reply.timestamp.timestamp() - time.time()) < 60


def test_none_is_an_empty_reply(broker):
    broker.responder("t")(lambda request: None)
    assert broker.request("t", None).value is None


def test_every_thread_gets_its_own_reply(broker):
    broker.responder(TOPIC, concurrency=4)(lambda request: (request.value or b"").upper())
    with ThreadPoolExecutor(8) as pool:
        values = [b"value %d" % number for number in range(400)]
        replies = list(pool.map(lambda value: broker.request(TOPIC, value).value, values))
    assert replies == [value.upper() for value in values]


def test_a_responder_may_ask_another_one(broker, upper):
    broker.responder("outer")(lambda request: broker.request(TOPIC, request.value).value + b"!")
    assert broker.request("outer", b"hello").value == b"HELLO!"


def test_the_decorated_function_can_still_be_called(broker, upper):
    record = logbroker.Record(topic="t", partition=0, offset=0, timestamp_ms=0, key=None, value=b"a")
    request = Request(record=record, correlation_id=None, reply_to=None, reply_by_ms=None, delivery_count=1)
    assert upper(request) == b"A"


# Several responders ---------------------------------------------------------------------------------------


def test_responders_compete_and_each_request_is_answered_by_one(broker, tmp_path):
    values: list[bytes | None] = []

    def function(request: Request) -> None:
        values.append(request.value)

    with logbroker.open(tmp_path / "data") as other:
        responders = [each.responder("t", concurrency=2)(function) for each in (broker, other)]
        for number in range(100):
            broker.request("t", b"%d" % number)
    broker.close()
    assert sum(responder.counts.answered for responder in responders) == 100
    assert sorted(values) == sorted(b"%d" % number for number in range(100))


def test_concurrency_bounds_how_many_requests_are_worked_on(broker):
    gate = Gate()
    responder = broker.responder("t", concurrency=2)(gate)
    replies = [ask_in_thread(broker, "t", b"%d" % number) for number in range(3)]
    gate.wait_until_entered()
    gate.wait_until_entered()
    assert not gate.entered.acquire(timeout=0.2)
    gate.opened.set()
    assert [reply().value for reply in replies] == [b"done"] * 3
    eventually(lambda: responder.counts == ResponderCounts(answered=3))


# Failures of the responder --------------------------------------------------------------------------------


def test_an_exception_comes_back_as_text_and_the_request_is_not_tried_again(broker, caplog):
    calls: list[int] = []

    @broker.responder("t")
    def fail(request: Request) -> bytes:
        calls.append(1)
        raise ValueError("there is no such order")

    with pytest.raises(ResponderError, match="ValueError: there is no such order") as caught:
        broker.request("t", b"")
    error = caught.value
    assert (error.topic, error.error_type, error.error) == ("t", "ValueError", "there is no such order")
    assert error.traceback is None
    eventually(lambda: fail.counts == ResponderCounts(failed=1))
    assert broker.subscription(fail.subscription).partitions[0].start_offset == 1
    assert calls == [1]
    assert "there is no such order" in caplog.text


def test_a_traceback_is_told_when_that_was_asked_for(broker):
    @broker.responder("t", tracebacks=True)
    def fail(request: Request) -> bytes:
        raise KeyError("deep")

    with pytest.raises(ResponderError) as caught:
        broker.request("t", b"")
    assert "test_request_reply.py" in (caught.value.traceback or "")
    assert "KeyError: 'deep'" in (caught.value.traceback or "")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ("text", "returns bytes, a Message or None, not str; encode it first"),
        ({"a": 1}, "not dict"),
        (Message(b"", priority=3), "a Message with more cannot be one"),
        (Message(b"", headers={"a": 5}), "header 'a' is bytes, text or None"),
        (Message("text"), "value is bytes or None"),  # type: ignore[arg-type]
    ],
)
def test_an_answer_that_cannot_be_sent_is_an_error_that_says_why(broker, answer, hint):
    broker.responder("t")(lambda request: answer)
    with pytest.raises(ResponderError, match=hint):
        broker.request("t", b"", timeout=DEADLINE_S)


def test_a_reply_that_is_too_large_for_its_topic_is_an_error_there(broker):
    broker.create_topic("answers", config={"max.message.bytes": 1000})
    responder = broker.responder("t")(lambda request: bytes(2000))
    with broker.producer() as producer, broker.consumer("answers") as consumer:
        producer.send("t", b"", headers={"correlation-id": b"\x07", "reply-to": "answers"})
        producer.flush()
        (reply,) = consumer.poll(timeout=DEADLINE_S)
    assert reply.headers[0] == ("correlation-id", b"\x07")
    assert ("reply-error-type", b"RecordTooLargeError") in reply.headers
    responder.stop()


def test_where_not_even_the_error_fits_nothing_is_sent_and_the_responder_goes_on(broker, upper):
    broker.create_topic("answers", config={"max.message.bytes": 1000})
    with broker.producer() as producer:
        producer.send(TOPIC, b"x", headers={"correlation-id": bytes(2000), "reply-to": "answers"})
    eventually(lambda: upper.counts == ResponderCounts(answered=1, unwanted=1))
    assert broker.request(TOPIC, b"hello").value == b"HELLO"


def test_an_exception_without_a_text_is_an_answer_and_the_responder_goes_on(broker):
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise AttributeError("reason")

    @broker.responder("t")
    def fail(request: Request) -> bytes:
        if request.value == b"fail":
            raise SpeechlessError
        return b"done"

    with pytest.raises(ResponderError, match=r"SpeechlessError: .*AttributeError"):
        broker.request("t", b"fail", timeout=DEADLINE_S)
    assert broker.request("t", b"", timeout=DEADLINE_S).value == b"done"


# A disk that refuses --------------------------------------------------------------------------------------


def test_a_reply_that_the_full_disk_refuses_is_made_again(tmp_path, caplog):
    files = FaultyFiles(OsFiles())
    counts: list[int] = []
    with logbroker.open(tmp_path / "data", files=files) as broker:

        @broker.responder("t")
        def answer(request: Request) -> bytes:
            counts.append(request.delivery_count)
            if len(counts) == 1:
                files.fail("pwrite", error=errno.ENOSPC, path=".log")
            return b"%d" % request.delivery_count

        assert broker.request("t", b"", timeout=DEADLINE_S).value == b"2"
        assert broker.request("t", b"", timeout=DEADLINE_S).value == b"1"
        assert counts == [1, 2, 1]
    assert "waits and tries again" in caplog.text


def test_that_a_request_is_done_need_not_get_into_the_journal(tmp_path):
    files = FaultyFiles(OsFiles())
    counts: list[int] = []
    with logbroker.open(tmp_path / "data", files=files) as broker:

        @broker.responder("t")
        def answer(request: Request) -> bytes:
            counts.append(request.delivery_count)
            if len(counts) == 1:
                files.fail("pwrite", error=errno.ENOSPC, path="__journal-0/00000000000000000000.log")
            return b"done"

        for _ in range(3):
            assert broker.request("t", b"", timeout=DEADLINE_S).value == b"done"
        assert counts == [1, 1, 1]
        eventually(lambda: broker.subscription(answer.subscription).lag == 0)


def test_a_request_that_the_full_disk_refuses_is_an_error_and_given_up(tmp_path):
    files = FaultyFiles(OsFiles())
    with logbroker.open(tmp_path / "data", files=files) as broker:
        broker.responder("t")(lambda request: b"")
        broker.request("t", b"")
        files.fail("pwrite", error=errno.ENOSPC, path="t-0/00000000000000000000.log")
        with pytest.raises(WriteFailedError):
            broker.request("t", b"")
        broker.request("t", b"")
        assert broker.request_counts == RequestCounts(sent=3, answered=2, given_up=1)


# Nobody, or nobody in time --------------------------------------------------------------------------------


def test_without_a_responder_the_request_fails_at_once_and_is_not_sent(broker):
    broker.create_topic("t")
    with pytest.raises(NoRespondersError, match="nobody responds to 't': start a responder"):
        broker.request("t", b"", timeout=3600)
    assert broker.topic("t").partitions[0].log_end_offset == 0
    assert broker.request_counts.sent == 0


def test_a_misspelt_topic_is_told_the_nearest_one(broker, upper):
    with pytest.raises(NoRespondersError, match=r"did you mean 'rpc\.upper'"):
        broker.request("rpc.uper", b"")
    assert broker.topics() == [TOPIC]


def test_a_responder_that_stopped_is_no_longer_there(broker, upper):
    upper.stop()
    assert not upper.is_running
    with pytest.raises(NoRespondersError):
        broker.request(TOPIC, b"")


def test_a_request_may_be_sent_before_its_responder_comes(broker):
    waiting = ask_in_thread(broker, "t", b"early", if_nobody="wait", timeout=DEADLINE_S)
    eventually(lambda: broker.request_counts.sent == 1)
    broker.responder("t")(lambda request: request.value)
    assert waiting().value == b"early"


def test_no_reply_in_time_is_an_error_of_its_own(broker):
    with pytest.raises(RequestTimeoutError, match=r"no reply .* on 't' within 0\.05 seconds") as caught:
        broker.request("t", b"", timeout=0.05, if_nobody="wait")
    assert (caught.value.topic, caught.value.timeout) == ("t", 0.05)
    assert broker.request_counts == RequestCounts(sent=1, given_up=1)


def test_nobody_works_on_what_nobody_waits_for_any_more(broker):
    for _ in range(3):
        with pytest.raises(RequestTimeoutError):
            broker.request("t", b"expired", timeout=0.01, if_nobody="wait")
    seen: list[bytes | None] = []
    broker.responder("t")(lambda request: seen.append(request.value))
    broker.request("t", b"in time")
    assert seen == [b"in time"]


def test_a_deadline_of_a_client_that_knows_no_time_to_live_counts_too(broker):
    responder = broker.responder("t")(lambda request: b"")
    with broker.producer() as producer:
        producer.send("t", b"", headers={"reply-by": b"%d" % (time.time_ns() // 1_000_000 - 1)})
    eventually(lambda: responder.counts == ResponderCounts(expired=1))


def test_a_late_reply_is_dropped_and_counted_and_the_next_request_gets_its_own(broker, caplog):
    caplog.set_level(logging.INFO, "logbroker.requests")
    gate = Gate()
    broker.responder("t")(gate)
    with pytest.raises(RequestTimeoutError):
        broker.request("t", b"slow", timeout=1.0)
    gate.opened.set()
    assert broker.request("t", b"next").value == b"done"
    assert broker.request_counts == RequestCounts(sent=2, answered=1, given_up=1, dropped=1)
    assert "nobody waits for it" in caplog.text


# Clients of other kinds -----------------------------------------------------------------------------------


def test_a_message_without_reply_to_is_worked_on_and_its_answer_goes_nowhere(broker):
    seen: list[Request] = []
    responder = broker.responder("t")(lambda request: seen.append(request))
    with broker.producer() as producer:
        producer.send("t", b"one way")
    eventually(lambda: responder.counts == ResponderCounts(answered=1, unwanted=1))
    assert (seen[0].value, seen[0].reply_to, seen[0].correlation_id) == (b"one way", None, None)


def test_a_request_by_hand_is_answered_on_the_topic_that_it_names(broker, upper):
    broker.create_topic("answers")
    with broker.producer() as producer, broker.consumer("answers") as consumer:
        producer.send(TOPIC, b"hello", headers={"correlation-id": b"\x00\xff", "reply-to": "answers"})
        producer.flush()
        (reply,) = consumer.poll(timeout=DEADLINE_S)
    assert (reply.value, reply.headers) == (b"HELLO", [("correlation-id", b"\x00\xff")])


def test_a_consumer_may_answer_by_hand(broker):
    broker.create_topic("t")
    waiting = ask_in_thread(broker, "t", b"hello", if_nobody="wait", timeout=DEADLINE_S)
    with broker.consumer("t") as consumer, broker.producer() as producer:
        (record,) = consumer.poll(timeout=DEADLINE_S)
        headers = dict(record.headers)
        reply_to = (headers["reply-to"] or b"").decode()
        producer.send(reply_to, b"by hand", headers={"correlation-id": headers["correlation-id"]})
        producer.flush()
        assert waiting().value == b"by hand"


@pytest.mark.parametrize("reply_to", ["no-such-topic", "__journal", "__reply-1-ab-1", "a topic", "__state"])
def test_a_reply_to_nowhere_is_dropped_and_the_responder_goes_on(broker, upper, reply_to):
    with broker.producer() as producer:
        producer.send(TOPIC, b"x", headers={"correlation-id": b"1", "reply-to": reply_to})
    eventually(lambda: upper.counts == ResponderCounts(answered=1, unwanted=1))
    assert broker.request(TOPIC, b"hello").value == b"HELLO"


# Arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 100_000, True, "5", None])
def test_a_timeout_is_a_number_of_seconds(broker, upper, timeout):
    with pytest.raises(InvalidRequestError, match="timeout="):
        broker.request(TOPIC, b"", timeout=timeout)


@pytest.mark.parametrize(
    "headers", [{"reply-to": "x"}, [("correlation-id", b"1")], {"logbroker.ttl.ms": b""}]
)
def test_the_headers_that_say_how_to_reply_are_the_brokers(broker, upper, headers):
    with pytest.raises(InvalidRequestError, match="header"):
        broker.request(TOPIC, b"", headers=headers)


def test_what_cannot_be_sent_is_given_up_at_once(broker, upper):
    with pytest.raises(InvalidRequestError, match="value is bytes"):
        broker.request(TOPIC, "text")
    with pytest.raises(InvalidRequestError, match="if_nobody='maybe'"):
        broker.request(TOPIC, b"", if_nobody="maybe")
    with pytest.raises(InvalidTopicError):
        broker.request("__journal", b"")
    assert broker.request_counts == RequestCounts(sent=1, given_up=1)


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"concurrency": 1.5}, {"concurrency": True}, {"lease": 0}]
)
def test_a_responders_options_are_checked(broker, options):
    with pytest.raises(InvalidRequestError, match=next(iter(options))):
        broker.responder("t", **options)(lambda request: None)
    with pytest.raises(NoRespondersError):
        broker.request("t", b"")


def test_a_responder_is_a_function_of_a_topic_that_users_may_have(broker):
    with pytest.raises(InvalidRequestError, match="something to call"):
        broker.responder("t")(b"no function")
    with pytest.raises(InvalidTopicError):
        broker.responder("__t")(lambda request: None)


# Topics ---------------------------------------------------------------------------------------------------


def test_a_request_topic_is_made_on_demand_and_one_that_is_there_stays_as_it_is(broker):
    broker.create_topic("mine", partitions=3)
    broker.responder("mine")(lambda request: request.value)
    broker.responder("made")(lambda request: request.value)
    assert broker.topic("mine").overrides == {}
    assert broker.topic("made").overrides == {key: str(value) for key, value in REQUEST_CONFIG.items()}
    for name in ("mine", "made"):
        for number in range(6):
            assert broker.request(name, b"%d" % number, key=b"%d" % number).value == b"%d" % number


def test_the_reply_topic_is_hidden_and_goes_with_the_broker(broker, upper, tmp_path):
    with logbroker.open(tmp_path / "data") as other:
        other.request(TOPIC, b"")
        assert len(internal_topics(broker)) == 1
        assert other.topics() == [TOPIC]
        with other.consumer("*") as consumer:
            assert {topic for topic, _ in consumer.assignment()} == {TOPIC}
    assert internal_topics(broker) == []


def test_reply_topics_of_dead_processes_are_swept_and_those_of_the_living_stay(broker, upper):
    broker.request(TOPIC, b"")
    mine = internal_topics(broker)
    for name in ("__reply-1-0123456789ab-1", "__reply-1-0123456789ab-2"):
        broker._directory.create_topic(name, 1, logbroker_config())
    sweep_reply_topics(broker._directory)
    assert internal_topics(broker) == mine
    assert broker.request(TOPIC, b"hello").value == b"HELLO"


def logbroker_config() -> Any:
    from logbroker_storage.log_config import LogConfig

    return LogConfig.parse({})


def test_a_reply_topic_stays_small_however_much_is_answered(broker):
    value = bytes(200_000)
    broker.responder("t")(lambda request: value)
    for _ in range(6 * REPLY_SEGMENT_BYTES // len(value)):
        assert broker.request("t", b"").value == value
    (name,) = internal_topics(broker)
    assert broker._directory.log(name, 0).size_bytes() < 2.5 * REPLY_SEGMENT_BYTES


def test_requests_that_are_done_are_deleted_from_a_topic_that_was_made_on_demand(broker):
    broker.responder("t")(lambda request: None)
    for _ in range(20):
        broker.request("t", bytes(1_000_000))
    assert sum(partition.size_bytes for partition in broker.topic("t").partitions) > 20_000_000
    eventually(lambda: broker.subscription("responders:t").lag == 0)
    assert broker.clean()
    assert sum(partition.size_bytes for partition in broker.topic("t").partitions) == 0


def test_when_its_reply_topic_is_deleted_a_broker_makes_another(broker):
    gate = Gate()
    broker.responder("t")(gate)
    waiting = ask_in_thread(broker, "t", b"")
    gate.wait_until_entered()
    (name,) = internal_topics(broker)
    broker.delete_topic(name)
    with pytest.raises(TopicNotFoundError):
        waiting()
    gate.opened.set()
    assert broker.request("t", b"").value == b"done"
    assert broker.request_counts.sent == 2


# The end --------------------------------------------------------------------------------------------------


def test_stop_waits_for_the_request_at_hand(broker):
    gate = Gate()
    responder = broker.responder("t")(gate)
    waiting = ask_in_thread(broker, "t", b"")
    gate.wait_until_entered()
    stopping = threading.Thread(target=responder.stop)
    stopping.start()
    eventually(lambda: not responder.is_running)
    assert stopping.is_alive()
    gate.opened.set()
    assert waiting().value == b"done"
    stopping.join(DEADLINE_S)
    assert not stopping.is_alive()
    responder.stop()


def test_closing_the_broker_stops_its_responders_behind_the_request_at_hand(broker, tmp_path):
    gate = Gate()
    with logbroker.open(tmp_path / "data") as other:
        responder = other.responder("t", concurrency=3)(gate)
        waiting = ask_in_thread(broker, "t", b"")
        gate.wait_until_entered()
        threading.Timer(0.05, gate.opened.set).start()
    assert not responder.is_running
    assert waiting().value == b"done"
    with pytest.raises(NoRespondersError):
        broker.request("t", b"")


def test_a_function_may_stop_its_own_responder(broker):
    @broker.responder("t")
    def last(request: Request) -> bytes:
        last.stop()
        return b"the last"

    running = threading.Thread(target=last.run)
    running.start()
    assert broker.request("t", b"").value == b"the last"
    running.join(DEADLINE_S)
    assert not running.is_alive()


def test_closing_the_broker_ends_a_request_that_waits(tmp_path):
    gate = Gate()
    with logbroker.open(tmp_path / "data") as answering:
        answering.responder("t")(gate)
        with logbroker.open(tmp_path / "data") as asking:
            waiting = ask_in_thread(asking, "t", b"")
            gate.wait_until_entered()
        with pytest.raises(ClosedError, match="while a reply was awaited"):
            waiting()
        with pytest.raises(ClosedError):
            asking.request("t", b"")
        gate.opened.set()


def test_run_raises_what_ended_the_responder(broker, caplog):
    responder = broker.responder("t", concurrency=2)(lambda request: None)
    broker.delete_subscription(responder.subscription)
    with pytest.raises(SubscriptionNotFoundError):
        responder.run()
    assert not responder.is_running
    assert "responder of 't' ends" in caplog.text


@pytest.mark.timeout(60)
def test_a_signal_that_another_thread_gets_ends_run(broker):
    """The system gives it to any thread, and only the main one acts on it: it must not wait for ever."""

    class SignalError(Exception):
        pass

    def stop(*_: object) -> None:
        raise SignalError

    def answer(request: Request) -> bytes:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        return b"answered"

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        responder = broker.responder("t")(answer)
        waiting = ask_in_thread(broker, "t", b"")
        with pytest.raises(SignalError):
            responder.run()
        assert waiting().value == b"answered"
        assert not responder.is_running
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_rules_of_the_responders_queue_are_the_users_when_he_makes_it_first(broker):
    broker.create_topic("t")
    broker.create_subscription("responders:t", topic="t", max_deliveries=7)
    broker.responder("t")(lambda request: None)
    broker.responder("other")(lambda request: None)
    assert broker.subscription("responders:t").max_deliveries == 7
    assert broker.subscription("responders:other").max_deliveries == MAX_DELIVERIES
