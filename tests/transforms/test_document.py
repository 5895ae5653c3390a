"""``docs/transforms.md``: every example in it does what it says, and every kind of step has one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import logbroker
from logbroker.cli.app import run
from logbroker.transforms import load_pipeline
from logbroker.transforms.catalog import KINDS, kind_of, options_of
from logbroker_storage.testing.manual_clock import ManualClock

from .examples import DOCUMENT, Example, as_record, read_examples, read_modules

TEXT = DOCUMENT.read_text(encoding="utf-8")
EXAMPLES = read_examples(TEXT)


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python in the document, as modules that can be imported."""
    for name, text in read_modules(TEXT).items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data directory with orders in it, as the first commands find it; the other one of the two is no JSON."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOGBROKER_DATA", "data")
    (pipeline,) = re.findall(r'```toml\n(name = "clean orders".*?)```', TEXT, flags=re.DOTALL)
    Path("clean.toml").write_text(pipeline)
    with logbroker.open("data") as broker, broker.producer() as producer:
        broker.create_topic("orders")
        producer.send("orders", b'{"amt":3}').result(timeout=10)
        producer.send("orders", b"no JSON").result(timeout=10)
    return "data"


def check_cleaned(data: str) -> None:
    with logbroker.open(data) as broker:
        for topic, value in (("orders.clean", b'{"amount":3}'), ("orders.dead", b"no JSON")):
            with broker.consumer(topic, start="earliest") as consumer:
                assert [record.value for record in consumer.poll(10, timeout=10.0)] == [value]


def test_the_first_commands_do_what_they_say(orders: str) -> None:
    commands = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)[0]
    for line in commands.splitlines():
        arguments = shlex.split(line, comments=True)[1:]
        if arguments[:2] == ["transform", "run"]:
            arguments += ["--until-idle", "0"]
        assert run(arguments) == 0, line
    check_cleaned(orders)


def test_the_first_python_does_what_it_says(orders: str) -> None:
    code = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)[0]
    bounded = code.replace('dead_letter="orders.dead"', 'dead_letter="orders.dead", idle_timeout=0')
    assert bounded != code
    names = {"logbroker": logbroker, "record": EXAMPLES[0].record}
    exec(bounded, names)
    check_cleaned(orders)


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.title for example in EXAMPLES])
def test_an_example_does_what_it_says(example: Example) -> None:
    pipeline = load_pipeline(example.pipeline, clock=ManualClock())
    messages = pipeline.apply(example.record)
    assert [as_record(message, example.record) for message in messages] == example.expected


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.title for example in EXAMPLES])
def test_what_is_stored_of_an_example_does_the_same(example: Example) -> None:
    """``source`` is whole in itself, and stays as it is when it is loaded and stored again."""
    pipeline = load_pipeline(example.pipeline)
    assert pipeline.source is not None
    again = load_pipeline(pipeline.source)
    assert again.source == pipeline.source
    assert again.apply(example.record) == pipeline.apply(example.record)


def test_every_kind_of_step_has_an_example_under_its_name() -> None:
    shown: set[str] = set()
    for example in EXAMPLES:
        kinds = {kind_of(step["options"] | _kind(step["kind"]))[0] for step in _steps(example)}
        shown |= kinds & set(example.title.split(", "))
    assert sorted(set(KINDS) - shown) == []


def _steps(example: Example) -> list[dict[str, object]]:
    return load_pipeline(example.pipeline).describe()["steps"]  # type: ignore[no-any-return]


def _kind(kind: str) -> dict[str, str]:
    coding, _, format = kind.partition(" ")
    return {"kind": coding, "format": format} if format else {"kind": coding}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_in_the_document(kind: str) -> None:
    section = re.search(rf"^### [^\n]*\b{kind}\b.*?(?=^##)", TEXT, re.MULTILINE | re.DOTALL)
    assert section is not None
    options = [name for name in options_of(kind).__struct_fields__ if name != "missing"]
    missing = [name for name in options if not re.search(rf"\b{name}\b", section[0])]
    assert missing == []


def test_toml_without_an_example_can_be_loaded() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) > len(EXAMPLES)
    for block in blocks:
        load_pipeline(block)
