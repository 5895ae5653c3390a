"""200,000 nested JSON documents through two bindings and a transform, while routers are killed: all of it once.

Two processes of ``logbroker route run`` share the partitions of two topics. One of them, sometimes both, is killed
with -9 whenever what they write has grown by some random amount, and started again, until they have nothing left.
In the middle of it a third binding comes, from the earliest, and takes the routers back to the beginning.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import logbroker

RECORDS = 200_000
PARTITIONS = 2
KILLS = 12
TARGETS = ("large", "europe", "late")
CITIES = {"Berlin": "eu", "Paris": "eu", "Lyon": "eu", "Austin": "us", "Osaka": "jp"}
KINDS = ("created", "paid", "shipped", "returned")
PIPELINE = """
[[step]]
kind = "decode"
format = "json"

[[step]]
kind = "select"
fields = ["id", "customer", "total"]

[[step]]
kind = "rename"
fields = { total = "amount" }

[[step]]
kind = "encode"
format = "json"
"""


def order(number: int, rng: random.Random) -> dict[str, Any]:
    city = rng.choice(list(CITIES))
    lines = [
        {
            "sku": f"sku-{rng.randrange(5000)}",
            "quantity": rng.randrange(1, 9),
            "price": rng.randrange(9999) / 100,
        }
        for _ in range(rng.randrange(1, 4))
    ]
    return {
        "id": number,
        "customer": {"id": rng.randrange(500), "name": f"Zoë №{number}", "address": {"city": city}},
        "region": CITIES[city],
        "lines": lines,
        "total": rng.randrange(1000),
        "note": None if number % 3 else 'with "quotes" and \\',
    }


def event(number: int, rng: random.Random) -> dict[str, Any]:
    return {
        "id": number,
        "kind": rng.choice(KINDS),
        "customer": {"id": rng.randrange(500)},
        "region": rng.choice(["eu", "us", "jp"]),
        "context": {"page": f"/p/{rng.randrange(100)}", "tags": [str(rng.randrange(9)) for _ in range(3)]},
    }


def documents(count: int, rng: random.Random) -> Iterator[tuple[str, bytes, bytes, dict[str, Any] | None]]:
    """Topic, key, value and document; None where the value is no JSON."""
    for number in range(count):
        topic = "shop.orders" if number % 2 else "shop.events"
        document = order(number, rng) if number % 2 else event(number, rng)
        key = b"customer-%d" % document["customer"]["id"]
        value = json.dumps(document, ensure_ascii=bool(number % 5)).encode()
        if number % 997 == 0:
            yield topic, key, value[:-1] + b"#%d" % number, None
        else:
            yield topic, key, value, document


class Expected:
    """What has to be in each topic in the end: by target, the values of each key in order."""

    def __init__(self) -> None:
        self.large: dict[bytes, list[Any]] = {}
        self.europe: dict[bytes, list[bytes]] = {}
        self.late: dict[bytes, list[bytes]] = {}
        self.dead: Counter[bytes] = Counter()

    def add(self, topic: str, key: bytes, value: bytes, document: dict[str, Any] | None) -> None:
        if document is None:
            self.dead[value] += 1 if topic == "shop.events" else 3  # orders have all three bindings
            return
        if topic == "shop.orders" and document["total"] > 600:
            made = {"id": document["id"], "customer": document["customer"], "amount": document["total"]}
            self.large.setdefault(key, []).append(made)
        if topic == "shop.orders" and document["total"] < 100:
            self.late.setdefault(key, []).append(value)
        if document["region"] == "eu":
            # One topic at a time is in order for a key: it has the keys of two.
            self.europe.setdefault(topic.encode() + b" " + key, []).append(value)


def fill(data: Path, count: int, rng: random.Random) -> Expected:
    expected = Expected()
    with logbroker.open(data) as broker:
        for topic in ("shop.orders", "shop.events"):
            broker.create_topic(topic, PARTITIONS)
        for topic in TARGETS:
            broker.create_topic(topic, 3)
        broker.create_topic("dead")
        broker.bind("shop.orders", "large", when="json.total > 600", transform=PIPELINE, dead_letter="dead")
        broker.bind("shop.*", "europe", when='json.region == "eu"', dead_letter="dead")
        with broker.producer() as producer:
            for topic, key, value, document in documents(count, rng):
                producer.send(topic, value, key=key)
                expected.add(topic, key, value, document)
    return expected


class Routers:
    """Two processes that route, killed and started again."""

    def __init__(self, data: Path, rng: random.Random) -> None:
        self._data = data
        self._rng = rng
        self.kills = 0
        self.processes = [self._start(), self._start()]

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "logbroker.cli.app", "--data", str(self._data)]
        return subprocess.Popen(
            [*command, "route", "run", "--until-idle", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def written_bytes(self) -> int:
        return sum(
            path.stat().st_size for topic in TARGETS for path in self._data.glob(f"logs/{topic}-*/*.log")
        )

    def run_until_done(self, step_bytes: int, midway: Callable[[], None] | None) -> None:
        """Kill one whenever about *step_bytes* more are written, until both are done; call *midway* once."""
        try:
            while self._wait_for_growth(self._rng.randrange(1, 2 * step_bytes)):
                victims = self.processes if self._rng.random() < 0.2 else [self._rng.choice(self.processes)]
                for victim in list(victims):
                    self._kill(victim)
                if self.kills >= KILLS // 2 and midway is not None:
                    midway()
                    midway = None
            for process in self.processes:
                _, errors = process.communicate(timeout=60)
                assert process.returncode == 0, errors.decode()
        finally:
            for process in self.processes:
                process.kill()
                process.communicate()

    def _wait_for_growth(self, growth: int) -> bool:
        """False when both have ended instead, as they do when there is nothing left."""
        enough = self.written_bytes() + growth
        while self.written_bytes() < enough:
            if all(process.poll() is not None for process in self.processes):
                return False
            time.sleep(0.001)
        time.sleep(self._rng.uniform(0, 0.02))
        return True

    def _kill(self, victim: subprocess.Popen[bytes]) -> None:
        victim.kill()
        _, errors = victim.communicate()
        assert victim.returncode in (-9, 0), errors.decode()
        self.kills += victim.returncode == -9
        self.processes[self.processes.index(victim)] = self._start()


def read_all(broker: logbroker.Broker, topic: str) -> list[logbroker.Record]:
    records = []
    with broker.consumer(topic) as consumer:
        while found := consumer.poll(20_000, 0.2):
            records += found
    return records


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_record_is_routed_once_however_often_routers_are_killed(
    tmp_path: Path, rng: random.Random, long_run: bool
) -> None:
    data = tmp_path / "data"
    count = 5 * RECORDS if long_run else RECORDS
    expected = fill(data, count, rng)
    all_bytes = count * 110  # about what is written
    routers = Routers(data, rng)

    def bind_late() -> None:
        with logbroker.open(data) as broker:
            binding = broker.bind(
                "shop.orders", "late", when="json.total < 100", dead_letter="dead", start="earliest"
            )
            print(f"bound late with {broker.group('__router').lag} records to go, {binding.lag} of its own")

    routers.run_until_done(all_bytes // (8 * KILLS if long_run else KILLS), bind_late)
    print(f"{routers.kills} routers killed")
    assert routers.kills > KILLS // 2

    with logbroker.open(data) as broker:
        large: dict[bytes, list[Any]] = {}
        for record in read_all(broker, "large"):
            large.setdefault(record.key, []).append(json.loads(record.value))
        assert large == expected.large  # each once, with its content, in its key's order
        late: dict[bytes, list[bytes]] = {}
        for record in read_all(broker, "late"):
            late.setdefault(record.key, []).append(record.value)
        assert late == expected.late

        europe: dict[bytes, list[bytes]] = {}
        for record in read_all(broker, "europe"):
            source = b"shop.orders" if b'"lines"' in record.value else b"shop.events"
            europe.setdefault(source + b" " + record.key, []).append(record.value)
        assert europe == expected.europe
        assert Counter(record.value for record in read_all(broker, "dead")) == expected.dead
        group = broker.group("__router")
        assert [row.lag for row in group.offsets] == [0] * 2 * PARTITIONS
        assert [binding.stalled for binding in broker.bindings()] == [[], [], []]
    verify = [sys.executable, "-m", "logbroker_tools.cli", "verify", str(data)]
    verified = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout
