"""``logbroker transform run`` in two processes, one of them killed again and again: each record is once in the target
or once among the dead letters, as what it should be.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import logbroker
from logbroker import Message
from logbroker.broker import Broker

RECORDS = 60_000

PIPELINE = """
[[step]]
kind = "decode"
format = "json"

[[step]]
kind = "filter"
drop = "json.n % 7 == 0"

[[step]]
kind = "split"
field = "parts"
keep = ["n"]

[[step]]
kind = "encode"
format = "json"
"""


def value(number: int) -> bytes:
    """Two parts; of every eleventh the second is missing, so that it cannot be transformed."""
    parts = '{"p":0},1' if number % 11 == 0 else '{"p":0},{"p":1}'
    return f'{{"n":{number},"parts":[{parts}]}}'.encode()


def expected() -> tuple[list[bytes], list[bytes]]:
    kept = [number for number in range(RECORDS) if number % 7]
    clean = [b'{"n":%d,"p":%d}' % (number, part) for number in kept if number % 11 for part in (0, 1)]
    return clean, [value(number) for number in kept if number % 11 == 0]


def start(data: Path, pipeline: Path) -> subprocess.Popen[bytes]:
    run = ("transform", "run", "raw", "clean", "--group", "g", "--dead-letter", "dead", "--until-idle", "4")
    command = [
        sys.executable,
        "-m",
        "logbroker.cli.app",
        "--data",
        str(data),
        *run,
        "--pipeline",
        str(pipeline),
    ]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def values(broker: Broker, topic: str) -> list[bytes]:
    found: list[bytes] = []
    with broker.consumer(topic) as consumer:
        while records := consumer.poll(10_000, 0):
            found += [record.value or b"" for record in records]
    return found


def test_each_record_is_transformed_or_buried_once_whoever_dies(
    tmp_path: Path, rng: random.Random, long_run: bool
) -> None:
    data, pipeline = tmp_path / "data", tmp_path / "pipeline.toml"
    pipeline.write_text(PIPELINE)
    with logbroker.open(data) as broker:
        for topic in ("raw", "clean", "dead"):
            broker.create_topic(topic, partitions=3)
        with broker.producer() as producer:
            producer.send_many("raw", [Message(value(number), b"%d" % number) for number in range(RECORDS)])

    workers = [start(data, pipeline), start(data, pipeline)]
    for _ in range(60 if long_run else 8):
        time.sleep(rng.uniform(0.3, 1.0))
        victim = rng.randrange(2)
        workers[victim].send_signal(signal.SIGKILL)
        workers[victim].wait()
        workers[victim] = start(data, pipeline)
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]

    clean, dead = expected()
    with logbroker.open(data) as broker:
        assert sorted(values(broker, "clean")) == sorted(clean)
        assert sorted(values(broker, "dead")) == sorted(dead)
        assert [offset.lag for offset in broker.group("g").offsets] == [0, 0, 0]
