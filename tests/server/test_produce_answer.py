"""The answer to a produce request, of which most are copied: they say what kio would have written."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies
from kio.index import load_response_schema
from kio.serial import entity_reader

from logbroker.server.handlers.produce_answer import Part, answer
from logbroker.server.requests import Request
from logbroker_storage.errors import RecordTooLargeError
from logbroker_storage.log_config import LogConfig
from logbroker_storage.partition_log import AppendResult

PRODUCE = 0
BY_NAME, BY_ID = range(3, 13), range(13, 14)
OFFSETS = strategies.integers(-1, 2**63 - 1)
ID = uuid.uuid4()


def request(version: int, correlation_id: int = 7) -> Request:
    return Request(PRODUCE, version, correlation_id, "", None, 0, connection=None)  # type: ignore[arg-type]


def topic(version: int, name: str = "t") -> Any:
    return SimpleNamespace(name=name) if version in BY_NAME else SimpleNamespace(topic_id=ID)


def taken(
    of: Any, partition: int, base_offset: int, log_start_offset: int, *, stamped_ms: int | None = None
) -> Part:
    kind = "CreateTime" if stamped_ms is None else "LogAppendTime"
    log: Any = SimpleNamespace(config=LogConfig.parse({"message.timestamp.type": kind}))
    result = AppendResult(base_offset, base_offset, stamped_ms or 0, duplicate=False)
    return Part(of, partition, log, None, result, None, log_start_offset)


def read(version: int, answered: bytes) -> tuple[int, Any]:
    """The correlation id, and the message of which nothing is left over."""
    schema = load_response_schema(PRODUCE, version)
    readable = memoryview(answered).toreadonly()
    header, begin = entity_reader(schema.__header_schema__)(readable, 0)
    message, size = entity_reader(schema)(readable, begin)
    assert begin + size == len(answered)
    return header.correlation_id, message


@pytest.mark.parametrize("version", [*BY_NAME, *BY_ID])
@given(first=OFFSETS, second=OFFSETS, start=OFFSETS, partition=strategies.integers(0, 2**31 - 1))
def test_the_answer_for_a_batch_that_was_taken_says_where_it_is(version, first, second, start, partition):
    of = topic(version)
    for correlation_id, offset in ((1, first), (2, second)):
        part = taken(of, partition, offset, start)
        told, message = read(version, answer(request(version, correlation_id), [part]))
        assert told == correlation_id
        (response,) = message.responses
        assert (response.topic_id == ID) if version in BY_ID else (response.name == "t")
        (said,) = response.partition_responses
        assert (said.index, said.error_code.value, said.base_offset) == (partition, 0, offset)
        assert said.log_append_time is None
        assert getattr(said, "log_start_offset", start) == start


@pytest.mark.parametrize("version", [*BY_NAME, *BY_ID])
def test_it_is_the_answer_that_kio_makes_byte_by_byte(version):
    of = topic(version)
    said = {
        "index": 3,
        "base_offset": 2**40,
        "log_append_time": None,
        "log_start_offset": 17,
        "record_errors": [],
        "error_message": None,
    }
    response = {"name": "t", "topic_id": ID, "partition_responses": [said]}
    made = request(version).reply({"responses": [response]})
    assert answer(request(version), [taken(of, 3, 2**40, 17)]) == made


@pytest.mark.parametrize("version", [3, 9, 13])
def test_partitions_and_topics_are_told_apart(version):
    one, other = topic(version, "one"), topic(version, "other")
    for of in (one, other):
        for partition in (0, 1):
            _, message = read(version, answer(request(version), [taken(of, partition, 5, 0)]))
            ((said,),) = [response.partition_responses for response in message.responses]
            assert said.index == partition
            if version in BY_NAME:
                assert message.responses[0].name == of.name


@pytest.mark.parametrize("version", [3, 9, 13])
def test_what_is_more_to_say_is_said(version):
    of = topic(version)
    _, message = read(version, answer(request(version), [taken(of, 0, 5, 0, stamped_ms=1_700_000_000_123)]))
    (said,) = message.responses[0].partition_responses
    assert said.log_append_time.timestamp() == 1_700_000_000.123

    refused = Part(of, 0, None, None, None, RecordTooLargeError("t", size_bytes=9, max_bytes=8))
    _, message = read(version, answer(request(version), [refused, taken(of, 1, 5, 2)]))
    error, said = message.responses[0].partition_responses
    assert (error.error_code.name, error.base_offset) == ("message_too_large", -1)
    assert (said.index, said.error_code.name, said.base_offset) == (1, "none", 5)
    _, message = read(version, answer(request(version), [refused]))
    assert message.responses[0].partition_responses[0].error_code.name == "message_too_large"
