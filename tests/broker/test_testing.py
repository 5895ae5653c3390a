"""The pytest plugin that is shipped for users' own tests."""

from __future__ import annotations

import subprocess
import sys


def test_the_fixture_is_an_open_broker_on_a_directory_of_its_own(logbroker_broker, logbroker_path):
    assert logbroker_broker.topics() == []
    assert logbroker_broker.path == logbroker_path
    logbroker_broker.create_topic("t")
    with logbroker_broker.producer() as producer:
        assert producer.send("t", b"x").result().offset == 0


def test_the_next_test_finds_nothing_of_it(logbroker_broker):
    assert logbroker_broker.topics() == []


def test_the_plugin_imports_nothing_of_the_engine():
    code = (
        "import logbroker.testing, sys;"
        "print([name for name in sys.modules if name.startswith(('logbroker_storage', 'lmdb', 'logbroker.broker'))])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
