"""Bindings that come and go while a router is anywhere, against a model: each gets what it is to get, once, in order.

The model knows for each binding the records from its start on (all of them for "earliest", those sent after it for
"latest") that its condition takes. As long as it is bound it has to get a prefix of these, in the end all; from
``unbind`` on, nothing more.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import logbroker
from logbroker.routing.bindings import ROUTER_GROUP
from logbroker.routing.router import run_router

CONDITIONS = {
    None: lambda _: True,
    "key == 'a'": lambda key: key == b"a",
    "key != 'a'": lambda key: key != b"a",
}


@dataclass
class Bound:
    """A binding of the model: *expected* grows as long as it is *live*."""

    target: str
    takes: object
    expected: list[bytes] = field(default_factory=list)
    live: bool = True
    at_unbind: list[bytes | None] | None = None


class Model:
    """One partitioned source, and the bindings to targets of their own."""

    def __init__(self, path: Path) -> None:
        self.broker = logbroker.open(path)
        self.broker.create_topic("source")
        self.sent: list[tuple[bytes, bytes]] = []
        self.bound: dict[str, Bound] = {}

    def send(self, keys: list[bytes]) -> None:
        with self.broker.producer() as producer:
            for key in keys:
                value = b"%d" % len(self.sent)
                producer.send("source", value, key=key)
                self.sent.append((key, value))
                for bound in self.live():
                    if bound.takes(key):
                        bound.expected.append(value)

    def bind(self, start: str, when: str | None) -> None:
        name = f"t{len(self.bound)}"
        self.broker.create_topic(name)
        self.broker.bind("source", name, name=name, when=when, start=start, dead_letter="dead")
        bound = self.bound[name] = Bound(name, CONDITIONS[when])
        if start == "earliest":
            bound.expected += [value for key, value in self.sent if bound.takes(key)]

    def unbind(self, number: int) -> None:
        live = self.live()
        if live:
            bound = live[number % len(live)]
            self.broker.unbind(bound.target)
            bound.live = False
            bound.at_unbind = self.values(bound.target)

    def route(self, batches: int) -> None:
        """Some transactions of two records each."""
        stop = threading.Event()
        left = [batches]

        def count(_: int) -> None:
            left[0] -= 1
            if not left[0]:
                stop.set()

        if self.lag():
            broker = self.broker
            run_router(
                broker._directory,
                broker._transactions,
                stop=stop,
                idle_timeout=0.0,
                max_records=2,
                on_routed=count,
            )

    def live(self) -> list[Bound]:
        return [bound for bound in self.bound.values() if bound.live]

    def lag(self) -> int:
        return self.broker.group(ROUTER_GROUP).lag if self.live() else 0

    def values(self, topic: str) -> list[bytes | None]:
        with self.broker.consumer(topic) as consumer:
            return [record.value for record in consumer.poll(10_000, 0)]

    def check(self) -> None:
        for bound in self.bound.values():
            got = self.values(bound.target)
            assert got == bound.expected[: len(got)], bound
            assert bound.at_unbind is None or got == bound.at_unbind

    def check_all(self) -> None:
        while self.lag():
            self.route(100)
        self.check()
        for bound in self.live():
            assert self.values(bound.target) == bound.expected


KEYS = st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=5)
STEP = st.one_of(
    st.tuples(st.just("send"), KEYS),
    st.tuples(st.just("route"), st.integers(1, 3)),
    st.tuples(st.just("bind"), st.sampled_from(["earliest", "latest"]), st.sampled_from(list(CONDITIONS))),
    st.tuples(st.just("unbind"), st.integers(0, 5)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(STEP, max_size=14))
def test_each_binding_gets_what_it_is_to_get(tmp_path_factory, steps):
    model = Model(tmp_path_factory.mktemp("model") / "data")
    with model.broker:
        model.broker.create_topic("dead")
        for step, *arguments in steps:
            getattr(model, step)(*arguments)
            model.check()
        model.check_all()
