"""Options of the whole suite: ``--long`` runs the long form of the end-to-end proofs, ``--seed`` repeats one."""

from __future__ import annotations

import gc
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from logbroker_storage.view import environment
from logbroker_storage.view.gate import Gate

# Hundreds of tests start processes. Where no bytecode is kept, each of these compiles the product anew: most of a
# second of processor time, three times what it takes to load it.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tests make and delete hundreds of thousands of small files. ext4 passes over every inode that was deleted in the
# last seconds, each time it looks for a free one, which was more than half of the suite's processor time. What is to
# prove itself on a disk makes its folder there: see ``e2e/conftest`` and ``proof/conftest``.
SHARED_MEMORY = "/dev/shm"
NEEDED_BYTES = 4 << 30
if os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free >= NEEDED_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", SHARED_MEMORY)

# How long an example takes is no property of ours: a busy machine would fail the suite.
hypothesis.settings.register_profile(
    "logbroker", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("logbroker")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long form of the end-to-end tests")
    parser.addoption("--seed", type=int, default=None, help="the seed of random tests (default: a new one)")


@pytest.fixture
def long_run(request: pytest.FixtureRequest) -> bool:
    """Whether the long form was asked for."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """A source of randomness whose seed is printed when the test fails."""
    seed = request.config.getoption("--seed")
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed: {seed} (repeat with --seed {seed})")
    return random.Random(seed)


@pytest.fixture
def refuse_thread(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the next start of a thread fail whose name begins so, as where the process has too many."""

    def refuse(name: str) -> None:
        start, refusals = threading.Thread.start, [RuntimeError("can't start new thread")]

        def start_or_fail(thread: threading.Thread) -> None:
            if refusals and thread.name.startswith(name):
                raise refusals.pop()
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_fail)

    return refuse


@pytest.fixture(scope="session", autouse=True)
def nothing_left_in_memory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """What tests leave is memory there; pytest keeps that of three runs. Kept where one has failed."""
    yield
    folder = tmp_path_factory.getbasetemp()
    if folder.is_relative_to(SHARED_MEMORY) and not request.session.testsfailed:
        shutil.rmtree(folder, ignore_errors=True)


class StrictGate(Gate):
    """Holds every thread to what the gate asks of it: who is inside leaves before coming in again.

    Otherwise a fork that falls between waits for that thread, which waits for the fork.
    """

    def __init__(self) -> None:
        super().__init__()
        self._this_thread = threading.local()
        take_out = self.leave

        def leave() -> None:
            self._this_thread.is_inside = False
            take_out()

        self.leave = leave

    def enter(self) -> None:
        assert not getattr(self._this_thread, "is_inside", False), "a thread goes into the view a second time"
        super().enter()
        self._this_thread.is_inside = True


@pytest.fixture(scope="session", autouse=True)
def no_thread_goes_into_the_view_twice() -> Iterator[None]:
    """Checked wherever a test opens a directory in its own process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "Gate", StrictGate)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The proofs first: they are the longest files, and the one that begins last decides when a run ends."""
    items.sort(key=lambda item: item.path.parent.name != "proof")


def pytest_collection_finish() -> None:
    """What was collected lives to the end: the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()
