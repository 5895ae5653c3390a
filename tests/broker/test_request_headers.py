"""The headers of requests and replies: what is written is read, and what others write does no harm."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from logbroker.request_reply import headers as codec
from logbroker.request_reply.headers import (
    MAX_ERROR_CHARACTERS,
    MAX_TRACEBACK_CHARACTERS,
    Failure,
    ReplyHeaders,
    RequestHeaders,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    without,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
failures = st.builds(Failure, text, text, st.none() | text)
requests = st.builds(
    RequestHeaders,
    correlation_id=st.none() | st.binary(max_size=50),
    reply_to=st.none() | text,
    reply_by_ms=st.none() | st.integers(0, 10**14 - 1),
)
replies = st.builds(
    ReplyHeaders, correlation_id=st.none() | st.binary(max_size=50), failure=st.none() | failures
)
names = st.sampled_from(sorted(codec.REQUEST_HEADERS | codec.REPLY_HEADERS)) | st.text(max_size=5)
pairs = st.lists(st.tuples(names, st.none() | st.binary(max_size=30)))


def test_the_names_are_those_of_the_documentation():
    documented = re.findall(r"^    ([a-z]+(?:-[a-z]+)+) ", codec.__doc__ or "", re.MULTILINE)
    assert set(documented) == codec.REQUEST_HEADERS | codec.REPLY_HEADERS


def test_a_request_is_plain_text_for_clients_of_any_kind():
    asks = RequestHeaders(correlation_id=b"\x00\xff", reply_to="answers", reply_by_ms=1_700_000_000_000)
    assert encode_request(asks) == [
        ("correlation-id", b"\x00\xff"),
        ("reply-to", b"answers"),
        ("reply-by", b"1700000000000"),
    ]


@given(requests)
def test_a_request_is_read_as_it_was_written(asks):
    assert decode_request(encode_request(asks)) == asks


@given(replies)
def test_a_reply_is_read_as_it_was_written(answer):
    assert decode_reply(encode_reply(answer)) == answer


@given(pairs)
def test_headers_of_anybody_are_read_without_an_error(strange):
    decode_request(strange)
    decode_reply(strange)


@given(requests, pairs)
def test_what_comes_behind_the_first_sound_value_changes_nothing(asks, strange):
    own = {name for name, _ in encode_request(asks)}
    behind = [pair for pair in strange if pair[0] in own]
    assert decode_request([*encode_request(asks), *behind]) == asks


def test_a_value_that_cannot_be_read_counts_as_absent():
    damaged = [("reply-to", b"\xff"), ("reply-by", b"soon"), ("reply-by", b"-5"), ("reply-by", b"9" * 15)]
    assert decode_request(damaged) == RequestHeaders()
    assert decode_request([*damaged, ("reply-to", b"t"), ("reply-by", b"7")]) == RequestHeaders(
        reply_to="t", reply_by_ms=7
    )
    assert decode_request([("correlation-id", None), ("reply-to", None)]) == RequestHeaders()


def test_an_error_without_a_type_is_an_error_all_the_same():
    assert decode_reply([("reply-error", b"no")]).failure == Failure("no", "")
    assert decode_reply([("reply-error-type", b"ValueError")]).failure is None


def test_long_texts_are_cut_an_error_at_its_end_and_a_traceback_at_its_beginning():
    failure = Failure("e" * 10_000, "E", "begin" + "t" * 50_000 + "end")
    read = decode_reply(encode_reply(ReplyHeaders(failure=failure))).failure
    assert read is not None
    assert read.error == "e" * MAX_ERROR_CHARACTERS
    assert read.traceback is not None
    assert len(read.traceback) == MAX_TRACEBACK_CHARACTERS
    assert read.traceback.endswith("end")


def test_an_error_with_no_utf_8_form_is_told_as_far_as_it_has_one():
    answer = ReplyHeaders(failure=Failure("a\udc80b", "E"))
    assert decode_reply(encode_reply(answer)).failure == Failure("a?b", "E")


def test_own_headers_are_left_when_the_others_are_taken_out():
    assert without([("a", b"1"), ("reply-to", b"t"), ("a", None)], codec.REQUEST_HEADERS) == [
        ("a", b"1"),
        ("a", None),
    ]
