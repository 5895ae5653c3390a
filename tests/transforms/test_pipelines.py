"""Pipelines: where they come from, what they pass on, and what is refused when they are loaded."""

from __future__ import annotations

import base64
import datetime
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from logbroker.records import Message
from logbroker.transforms import Draft, Pipeline, PipelineError, StepFailed, TransformError, load_pipeline
from logbroker.transforms.catalog import KINDS, describe_kinds
from logbroker_storage.record_batch import TTL_HEADER
from logbroker_storage.record_expiry import TTL

from .conftest import JSON_IN, JSON_OUT, a_record, on_json, steps

RENAME = {"kind": "rename", "fields": {"a": "b"}}
TOML = """
name = "clean"

[[step]]
kind = "decode"
format = "json"

[[step]]
kind = "rename"
fields = { a = "b" }

[[step]]
kind = "encode"
format = "json"
"""


# Where they come from -----------------------------------------------------------------------------------


def test_text_a_file_and_a_mapping_are_the_same_pipeline(tmp_path: Path) -> None:
    path = tmp_path / "clean.toml"
    path.write_text(TOML)
    mapping = {"name": "clean", "step": [JSON_IN, RENAME, JSON_OUT]}
    pipelines = [load_pipeline(source) for source in (TOML, path, str(path), mapping)]
    assert len({pipeline.source for pipeline in pipelines}) == 1
    for pipeline in pipelines:
        assert pipeline.name == "clean"
        assert [message.value for message in pipeline.apply(a_record(b'{"a": 1}'))] == [b'{"b":1}']
    assert load_pipeline(pipelines[0]) is pipelines[0]


def test_a_file_names_its_pipeline_and_is_where_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long.avsc").write_text('"long"')
    (tmp_path / "numbers.toml").write_text(
        '[[step]]\nkind = "decode"\nformat = "avro"\nschema_file = "long.avsc"\n'
        '[[step]]\nkind = "encode"\nformat = "json"'
    )
    monkeypatch.chdir("/")
    pipeline = load_pipeline(tmp_path / "numbers.toml")
    assert pipeline.name == "numbers"
    (tmp_path / "long.avsc").unlink()
    stored = load_pipeline(pipeline.source or "")
    assert [message.value for message in stored.apply(a_record(b"\x0e"))] == [b"7"]


def test_a_descriptor_set_is_stored_with_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "shop.binpb").write_bytes(b"")
    (tmp_path / "p.toml").write_text(
        '[[step]]\nkind = "decode"\nformat = "protobuf"\nmessage = "shop.Order"\ndescriptor_set = "shop.binpb"'
    )
    with pytest.raises(PipelineError, match=r"step 1: .*no message 'shop.Order'"):
        load_pipeline(tmp_path / "p.toml")


def test_a_function_is_a_pipeline_that_cannot_be_stored() -> None:
    def upper(record: Any) -> bytes:
        return record.value.upper()  # type: ignore[no-any-return]

    pipeline = load_pipeline(upper)
    assert pipeline.source is None
    assert pipeline.apply(a_record(b"a")) == [Message(b"A", b"alice")]
    with pytest.raises(TransformError, match="AttributeError") as raised:
        pipeline.apply(a_record(None))
    assert raised.value.step == "1 python"


def test_an_exception_without_a_text_is_the_records_error_too() -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise AttributeError("reason")

    def fail(record: Any) -> bytes:
        raise SpeechlessError

    with pytest.raises(TransformError, match=r"SpeechlessError: .*AttributeError"):
        load_pipeline(fail).apply(a_record(b"a"))


@pytest.mark.parametrize("output", ["text", {b"a": b"b"}, 7, [b"a", "b"]])
def test_a_function_returns_messages(output: Any) -> None:
    with pytest.raises(TransformError, match="Message"):
        load_pipeline(lambda record: output).apply(a_record(b"a"))


def drop_odd(draft: Draft, *, field: str = "id") -> Any:
    """A step of a package's."""
    if draft.is_tombstone:
        return draft
    if draft.payload[field] == 13:
        raise ValueError("unlucky")
    if draft.payload[field] % 2:
        return None
    return [draft.with_payload({field: number}) for number in range(draft.payload[field])]


SHARED = {"step": [JSON_IN, RENAME, JSON_OUT]}


def whole(record: Any) -> bytes:
    return b"whole"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package with these entry points were installed."""
    points = {
        "logbroker.transforms": {"shared": "SHARED", "function": "whole", "broken": "NOTHING"},
        "logbroker.transform_steps": {"drop_odd": "drop_odd", "no_step": "RENAME"},
    }
    monkeypatch.setitem(sys.modules, "installed_steps", sys.modules[__name__])

    def entry_points(*, group: str) -> list[metadata.EntryPoint]:
        return [
            metadata.EntryPoint(name, f"installed_steps:{of}", group) for name, of in points[group].items()
        ]

    monkeypatch.setattr("logbroker.transforms.loading.entry_points", entry_points)


@pytest.mark.usefixtures("installed")
def test_an_installed_pipeline_is_stored_by_its_name() -> None:
    for name, value in (("shared", b'{"b":1}'), ("function", b"whole")):
        pipeline = load_pipeline(name)
        assert pipeline.source == f'entry_point = "{name}"\n'
        again = load_pipeline(pipeline.source)
        assert [message.value for message in again.apply(a_record(b'{"a": 1}'))] == [value]
    with pytest.raises(
        PipelineError, match=r"no installed package has a pipeline 'other' .*broken, function, shared"
    ):
        load_pipeline("other")
    with pytest.raises(PipelineError, match="'broken' cannot be imported"):
        load_pipeline("broken")


@pytest.mark.usefixtures("installed")
def test_an_installed_step_is_used_by_its_name_and_its_options_are_arguments() -> None:
    pipeline = steps(JSON_IN, {"kind": "drop_odd", "field": "n"}, JSON_OUT)
    again = load_pipeline(pipeline.source or "")
    assert [message.value for message in again.apply(a_record(b'{"n": 2}'))] == [b'{"n":0}', b'{"n":1}']
    assert again.apply(a_record(b'{"n": 3}')) == []
    with pytest.raises(TransformError, match=r"step 2 drop_odd .*ValueError: unlucky"):
        again.apply(a_record(b'{"n": 13}'))
    with pytest.raises(PipelineError, match="'no_step' is a dict"):
        steps({"kind": "no_step"})
    with pytest.raises(PipelineError, match="no kind of step 'other'"):
        steps({"kind": "other"})


def as_it_is(draft: Draft) -> Draft:
    return draft


def seven(draft: Draft) -> int:
    return 7


def failed(draft: Draft) -> Draft:
    raise StepFailed("not today")


def text_key(draft: Draft) -> Draft:
    draft.key = "text"  # type: ignore[assignment]
    return draft


def odd_header(draft: Draft) -> list[Draft]:
    draft.headers = (("logbroker.mine", b""),)
    return [draft]


def no_time(draft: Draft) -> Draft:
    draft.timestamp_ms = 1.5  # type: ignore[assignment]
    return draft


def long_story(draft: Draft) -> Draft:
    raise ValueError("x" * 100_000)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("seven", "returned a int"),
        ("failed", "offset 7: not today"),
        ("as_it_is", "it takes a decoded value"),
        ("text_key", "key to a str"),
        ("odd_header", "reserved"),
        ("no_time", "timestamp_ms"),
        ("long_story", "x…$"),
    ],
)
def test_a_python_step_is_checked_at_each_message(
    monkeypatch: pytest.MonkeyPatch, function: str, says: str
) -> None:
    monkeypatch.setitem(sys.modules, "steps_of_mine", sys.modules[__name__])
    pipeline = steps({"kind": "python", "function": f"steps_of_mine:{function}"}, JSON_OUT)
    with pytest.raises(TransformError, match=says):
        pipeline.apply(a_record(b"{}"))


# What is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("a = ", "not TOML"),
        ("a = " + "[" * 5000, "TOML|deep"),
        ('[[stp]]\nkind = "drop"', "no 'stp' in a pipeline"),
        ('name = "empty"', r"1 to 200 \[\[step\]\] tables, not 0"),
        ("name = 7\nstep = []", "name is text"),
        ("step = 7", r"\[\[step\]\] tables"),
        ("[[step]]\nformat = 7", "step 1: a step has a kind"),
        ('[[step]]\nkind = "renam"', "step 1: .*did you mean 'rename'"),
        ('[[step]]\nkind = "decode"', "step 1: decode has a format: one of json"),
        ('[[step]]\nkind = "decode"\nformat = "jsn"', "step 1: decode: .*did you mean 'json'"),
        ('[[step]]\nkind = "drop"\nfeilds = []', "step 1: drop: .*did you mean 'fields'"),
        ('[[step]]\nkind = "drop"\nfields = 7', "step 1: drop: Expected `array`"),
        ('[[step]]\nkind = "drop"\nfields = ["a"]', "step 1: drop takes a decoded value, .*is bytes"),
        ('[[step]]\nkind = "decode"\nformat = "json"', "after step 1 the value is still decoded"),
        ({"step": [JSON_IN, JSON_IN]}, "step 2: decode json takes bytes, .*is a decoded value"),
        ({"step": [JSON_IN] * 201}, "not 201"),
        ({"step": [JSON_IN, {"kind": "insert", "field": "a", "value": {"b": None}}, JSON_OUT]}, "TOML cannot say"),
        ("nothing.toml", "nothing.toml.*cannot be read"),
        ("nothing", "no installed package"),
        (7, "not int"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_when_it_is_loaded(source: Any, says: str) -> None:
    with pytest.raises(PipelineError, match=f"(?s){says}"):
        load_pipeline(source)


def test_a_file_that_is_no_text_or_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(PipelineError, match="UTF-8"):
        load_pipeline(path)
    path.write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(PipelineError, match="larger"):
        load_pipeline(path)


# What is passed on --------------------------------------------------------------------------------------


def test_key_headers_and_timestamp_stay() -> None:
    record = a_record(b'{"a": 1}', header_pairs=(("h", b"1"), ("n", None)))
    (message,) = on_json(RENAME).apply(record)
    assert message == Message(b'{"b":1}', b"alice", (("h", b"1"), ("n", None)), None, record.timestamp_ms)


def test_a_tombstone_stays_one_and_meets_only_the_steps_that_see_it() -> None:
    pipeline = on_json(
        RENAME,
        {"kind": "set_headers", "values": {"seen": "yes"}, "expressions": {"empty": "json == null"}},
        {"kind": "filter", "drop": "key == 'bob'"},
    )
    (message,) = pipeline.apply(a_record(None))
    assert (message.value, message.headers) == (None, (("seen", b"yes"), ("empty", b"true")))
    assert pipeline.apply(a_record(None, key=b"bob")) == []
    with pytest.raises(TransformError, match="tombstone"):
        on_json({"kind": "set_key", "field": "a"}).apply(a_record(None))


def with_ttl(value: bytes, ttl_ms: int) -> Any:
    return a_record(value, header_pairs=(("h", b"1"), (TTL_HEADER, TTL.pack(ttl_ms))))


def test_a_time_to_live_runs_on_and_the_brokers_headers_are_nobodys() -> None:
    (message,) = on_json(RENAME).apply(with_ttl(b"{}", 5000))
    assert (message.ttl, message.headers) == (datetime.timedelta(seconds=5), (("h", b"1"),))
    (message,) = steps({"kind": "set_headers", "expressions": {"seen": "string(size(headers))"}}).apply(
        with_ttl(b"{}", 1)
    )
    assert message.headers == (("h", b"1"), ("seen", b"1"))


def test_with_another_timestamp_it_expires_when_the_record_would_have() -> None:
    pipeline = on_json({"kind": "timestamp", "field": "at"})
    later = a_record(b"").timestamp_ms + 2000
    (message,) = pipeline.apply(with_ttl(b'{"at": %d}' % later, 5000))
    assert (message.timestamp, message.ttl) == (later, datetime.timedelta(seconds=3))
    assert pipeline.apply(with_ttl(b'{"at": %d}' % (later + 3000), 5000)) == []


def test_times_at_the_edge_of_what_can_be_said_are_passed_on() -> None:
    (message,) = on_json(RENAME).apply(with_ttl(b"{}", (1 << 63) - 1))
    assert message.ttl is not None
    assert message.ttl > datetime.timedelta(days=900_000_000)
    (message,) = on_json(RENAME).apply(a_record(b"{}", timestamp_ms=-1))
    assert message.timestamp is None


def test_a_split_makes_drafts_that_do_not_share_what_later_steps_change() -> None:
    pipeline = on_json(
        {"kind": "split"},
        {"kind": "insert", "field": "tags", "value": ["new"]},
        {"kind": "set_headers", "fields": {"id": "id"}},
        {"kind": "cel", "field": "tags", "expression": "json.tags.map(tag, tag + string(json.id))"},
    )
    messages = pipeline.apply(a_record(b'[{"id": 1}, {"id": 2}]'))
    assert [(message.value, message.headers) for message in messages] == [
        (b'{"id":1,"tags":["new1"]}', (("id", b"1"),)),
        (b'{"id":2,"tags":["new2"]}', (("id", b"2"),)),
    ]


def test_splits_in_splits_are_bounded() -> None:
    value = b"[" + b",".join([b"[" + b",".join([b"0"] * 400) + b"]"] * 400) + b"]"
    with pytest.raises(TransformError, match="100000 messages"):
        on_json({"kind": "split"}, {"kind": "split"}).apply(a_record(value))


def test_threads_share_a_pipeline() -> None:
    pipeline = on_json({"kind": "jsonata", "expression": "{'b': a + 1}"})
    wrong: list[Any] = []

    def run(first: int) -> None:
        for number in range(first, first + 100):
            (message,) = pipeline.apply(a_record(b'{"a":%d}' % number))
            if message.value != b'{"b":%d}' % (number + 1):
                wrong.append((number, message))

    threads = [threading.Thread(target=run, args=(first,)) for first in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# What they say of themselves ----------------------------------------------------------------------------


def test_a_description_has_steps_with_number_kind_and_the_options_that_were_given() -> None:
    assert load_pipeline(TOML).describe() == {
        "name": "clean",
        "steps": [
            {"step": 1, "kind": "decode json", "options": {}},
            {"step": 2, "kind": "rename", "options": {"fields": {"a": "b"}}},
            {"step": 3, "kind": "encode json", "options": {}},
        ],
    }
    assert repr(load_pipeline(TOML)) == "<Pipeline 'clean': decode json, rename, encode json>"


def test_every_kind_says_what_it_does_and_what_it_takes() -> None:
    kinds = describe_kinds()
    assert [kind.kind for kind in kinds] == list(KINDS)
    for kind in kinds:
        assert kind.summary.endswith(".")
        assert all(option.type for option in kind.options)
    (rename,) = [kind for kind in kinds if kind.kind == "rename"]
    assert [(option.name, option.type, option.required) for option in rename.options] == [
        ("fields", "table", True),
        ("missing", "'ignore' | 'error'", False),
    ]


def test_bytes_in_the_middle_are_kept_as_they_are() -> None:
    pipeline = steps(
        {"kind": "decode", "format": "messagepack"}, {"kind": "cel", "expression": "json.b"}, JSON_OUT
    )
    (message,) = pipeline.apply(a_record(b"\x81\xa1b\xc4\x02\xff\x00"))
    assert message.value == b'"' + base64.b64encode(b"\xff\x00") + b'"'
    assert isinstance(pipeline, Pipeline)


IMPORTS = """
import subprocess
import sys
from logbroker.transforms import load_pipeline
load_pipeline({"step": [{"kind": "decode", "format": "json"}, {"kind": "drop", "fields": ["a"]},
                        {"kind": "encode", "format": "json"}]})
heavy = {"cel", "fastavro", "google.protobuf", "jsonata"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_only_a_step_that_needs_a_library_imports_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
