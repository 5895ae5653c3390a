"""A word count over a real text, killed with -9 again and again, counts each word exactly once.

The input is the text of Python's own help topics; counts are kept in ``tx.state``, and each new count goes to an
output topic. So a word that is counted twice, or not at all, shows in two places.
"""

from __future__ import annotations

import pydoc_data.topics
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import logbroker

GROUP = "word-count"
WORD = re.compile(rb"[A-Za-z_]+")

WORKER = f"""
import re, sys
import logbroker
from logbroker import Message

word = re.compile({WORD.pattern!r})

def count(record, state):
    for found in word.findall(record.value):
        number = int(state.get(found, b"0")) + 1
        state.put(found, b"%d" % number)
        yield Message(b"%d" % number, key=found)

with logbroker.open(sys.argv[1]) as broker:
    broker.transform("lines", "counts", group={GROUP!r}, function=count, max_records=40, idle_timeout=1.0)
"""


def lines(least_words: int) -> list[bytes]:
    """Lines of the text, as often over as it takes to have so many words."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode().splitlines()
    words = sum(len(WORD.findall(line)) for line in text)
    return text * (1 + least_words // words)


def start(data: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(data)])


def test_every_word_is_counted_exactly_once(tmp_path: Path, rng: random.Random, long_run: bool) -> None:
    kills, least_words = (200, 600_000) if long_run else (8, 1)
    data = tmp_path / "data"
    text = lines(least_words)
    if not long_run:
        text = text[:6000]
    expected = Counter(word for line in text for word in WORD.findall(line))
    with logbroker.open(data) as broker:
        broker.create_topic("lines")
        broker.create_topic("counts", partitions=3)
        with broker.producer() as producer:
            producer.send_many("lines", text)

    killed = 0
    while killed < kills:
        process = start(data)
        time.sleep(rng.uniform(0.3, 1.0))
        if process.poll() is not None:
            break  # it came to the end
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert killed == kills, f"the text was too short: done after {killed} kills, seed above"
    assert start(data).wait(timeout=600) == 0

    with logbroker.open(data) as broker:
        with broker.transaction(f"{GROUP}/lines-0") as tx:
            state = {word: int(number) for word, number in tx.state.range()}
        with broker.consumer("counts") as consumer:
            numbers: dict[bytes, list[int]] = {}
            while records := consumer.poll(10_000, 0):
                for record in records:
                    assert record.key is not None
                    assert record.value is not None
                    numbers.setdefault(record.key, []).append(int(record.value))
        (committed,) = broker.group(GROUP).offsets
    assert state == expected
    assert numbers == {word: list(range(1, count + 1)) for word, count in expected.items()}
    assert committed.committed_offset == len(text)
