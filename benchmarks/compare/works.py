"""How each work is measured: what is timed, and what its figures are.

Throughput runs for a time (``budget_s``), not for a count: the slow peers are a thousand times slower than the
fast ones. Everything is timed from the first call to the return of the last, with what the setting promises
(a flush, a sync, a confirmation) inside.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..measuring import Figures, peak_mib
from .contender import Contender, Session, Work

SMALL = b"x" * 100
LARGE = b"y" * 1024
THREADS = 16
WARM_UP = 0.4  # of the budget, before the clock starts: a JVM compiles, a client finds its partition
TAIL_PAUSE_S = 0.002
TAIL_WARM_UP = 50
QUEUE_BATCH = 100
RANDOM_READS = 20_000


def child(
    part: str, contender: Contender, work: Work, folder: Path, address: str, amount: float
) -> list[str]:
    """The command of one of the processes in ``child``."""
    arguments = [part, contender.name, work.name, str(folder), address, str(amount)]
    return [sys.executable, "-m", "benchmarks.compare.child", *arguments]


def measure(contender: Contender, work: Work, folder: Path, address: str, budget_s: float) -> Figures:
    """Run *work* once; called in a process of its own, on a new folder (or a folder that ``prepare`` filled)."""
    figures = _WORKS[work](contender, work, folder, address, budget_s)
    figures["client_peak_mib"] = peak_mib()
    return figures


def _chunk(contender: Contender, work: Work) -> list[bytes]:
    """So much as the contender is given at once: the same bytes, whatever the records' sizes."""
    if work in (Work.PRODUCE_1K, Work.CONSUME_1K, Work.RANDOM_OFFSET, Work.RANDOM_TIME):
        return [LARGE] * max(1, contender.chunk * len(SMALL) // len(LARGE))
    if work in (Work.PRODUCE_MIXED, Work.CONSUME_MIXED):
        sizes = random.Random(1)  # the same for all, around 100 bytes
        return [bytes(sizes.randint(50, 150)) for _ in range(contender.chunk)]
    return [SMALL] * contender.chunk


def _produce_for(session: Session, values: list[bytes], budget_s: float) -> tuple[int, float]:
    """Produce *values* again and again for a time; how often that was, and how many seconds it took."""
    count = 0
    began = time.perf_counter()
    while True:
        session.produce(values)
        count += 1
        elapsed = time.perf_counter() - began
        if elapsed >= budget_s:
            return count, elapsed


def produce(contender: Contender, work: Work, folder: Path, address: str, budget_s: float) -> Figures:
    session = contender.open(folder, address, work)
    values = _chunk(contender, work)
    _produce_for(session, values, budget_s * WARM_UP)
    chunks, elapsed = _produce_for(session, values, budget_s)
    session.close()
    return _throughput(chunks, values, elapsed)


def _throughput(chunks: int, values: list[bytes], elapsed: float) -> Figures:
    size = sum(map(len, values))
    return {"records_per_s": chunks * len(values) / elapsed, "mb_per_s": chunks * size / elapsed / 1e6}


def durable(contender: Contender, work: Work, folder: Path, address: str, budget_s: float) -> Figures:
    first = contender.open(folder, address, work)
    first.append(SMALL)
    sessions = [first] + [first.another() for _ in range(THREADS - 1 if work is Work.DURABLE_16 else 0)]
    counts = [0] * len(sessions)
    start = threading.Barrier(len(sessions) + 1)
    end = threading.Event()

    def append(number: int) -> None:
        append_one = sessions[number].append
        start.wait()
        while not end.is_set():
            append_one(SMALL)
            counts[number] += 1

    threads = [threading.Thread(target=append, args=(number,)) for number in range(len(sessions))]
    for thread in threads:
        thread.start()
    start.wait()
    end.wait(budget_s * WARM_UP)
    warmed_up = sum(counts)
    began = time.perf_counter()
    end.wait(budget_s)
    end.set()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    for session in {id(session): session for session in sessions}.values():
        session.close()
    return {"records_per_s": (sum(counts) - warmed_up) / elapsed}


def consume(contender: Contender, work: Work, folder: Path, address: str, budget_s: float) -> Figures:
    """What can be produced in the budget is read, by a session that did not write it."""
    values = _chunk(contender, work)
    writer = contender.open(folder, address, work)
    chunks, _ = _produce_for(writer, values, budget_s)
    writer.close()
    reader = contender.open(folder, address, work)
    began = time.perf_counter()
    size = reader.consume(chunks * len(values))
    elapsed = time.perf_counter() - began
    reader.close()
    if size != chunks * sum(map(len, values)):
        raise RuntimeError(f"{contender.name} gave {size} bytes back of {chunks * sum(map(len, values))}")
    return _throughput(chunks, values, elapsed)


def tail_same(contender: Contender, work: Work, folder: Path, address: str, budget_s: float) -> Figures:
    """A thread waits for what another thread of its process stores."""
    writer = contender.open(folder, address, work)
    writer.append(b"0")
    reader = contender.open(folder, address, work)
    reader.tail()
    count = _tail_count(budget_s)
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.extend(_delays_us(reader, count)))
    thread.start()
    _append_slowly(writer, count)
    thread.join()
    reader.close()
    writer.close()
    return _percentiles(found)


def tail_other(contender: Contender, work: Work, folder: Path, address: str, budget_s: float) -> Figures:
    """A process waits for what another process stores."""
    writer = contender.open(folder, address, work)
    writer.append(b"0")
    count = _tail_count(budget_s)
    command = child("receive", contender, work, folder, address, count)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the receiver of {contender.name} did not begin")
        _append_slowly(writer, count)
        found = [float(line) for line in process.stdout]
    writer.close()
    return _percentiles(found)


def receive(contender: Contender, work: Work, folder: Path, address: str, count: int) -> None:
    """The other process's part of ``tail_other``."""
    session = contender.open(folder, address, work)
    session.tail()
    print("ready", flush=True)
    for delay in _delays_us(session, count):
        print(delay)
    sys.stdout.flush()


def _tail_count(budget_s: float) -> int:
    return TAIL_WARM_UP + int(budget_s * 200)


def _append_slowly(session: Session, count: int) -> None:
    time.sleep(0.2)
    for _ in range(count):
        session.append(b"%d" % time.monotonic_ns())
        time.sleep(TAIL_PAUSE_S)


def _delays_us(session: Session, count: int) -> list[float]:
    found = []
    for _ in range(count):
        value = session.next()
        found.append((time.monotonic_ns() - int(value)) / 1000)
    return found[TAIL_WARM_UP:]


def _percentiles(values_us: list[float]) -> Figures:
    ordered = sorted(values_us)
    return {
        "p50_ms": statistics.median(ordered) / 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] / 1000,
        "p99_9_ms": ordered[min(int(len(ordered) * 0.999), len(ordered) - 1)] / 1000,
    }


def queue(contender: Contender, work: Work, folder: Path, address: str, budget_s: float) -> Figures:
    session = contender.open(folder, address, work)
    _produce_for(session, _chunk(contender, work), budget_s)
    taken = 0
    began = time.perf_counter()
    while time.perf_counter() - began < budget_s:
        batch = session.take(QUEUE_BATCH)
        taken += batch
        if batch < QUEUE_BATCH:
            break
    elapsed = time.perf_counter() - began
    session.close()
    if not taken:
        raise RuntimeError(f"{contender.name} gave no message of those that it was given")
    return {"messages_per_s": taken / elapsed}


def transform(contender: Contender, work: Work, folder: Path, address: str, budget_s: float) -> Figures:
    session = contender.open(folder, address, work)
    values = [SMALL] * 20_000
    chunks, _ = _produce_for(session, values, budget_s / 20)
    count = chunks * len(values)
    began = time.perf_counter()
    session.transform(count)
    elapsed = time.perf_counter() - began
    session.close()
    return {"records_per_s": count / elapsed}


def random_reads(contender: Contender, work: Work, folder: Path, address: str, budget_s: float) -> Figures:
    session = contender.open(folder, address, work)
    values = _chunk(contender, work)
    count, moments_ms = 0, [time.time_ns() // 1_000_000]
    deadline = time.perf_counter() + budget_s
    while not count or time.perf_counter() < deadline:
        moments_ms.append(time.time_ns() // 1_000_000)
        session.produce(values)
        count += len(values)
    rng = random.Random(1)
    read: Callable[[int], bytes]
    if work is Work.RANDOM_OFFSET:
        read, low, high = session.read_offset, 0, count - 1
    else:
        read, low, high = session.read_time, moments_ms[0], moments_ms[-1]  # at least one chunk is not older
    delays_us = []
    deadline = time.perf_counter() + budget_s
    for _ in range(RANDOM_READS):
        place = rng.randint(low, high)
        began = time.perf_counter()
        value = read(place)
        delays_us.append((time.perf_counter() - began) * 1e6)
        if value != LARGE:
            raise RuntimeError(f"{contender.name} gave another record for {place}")
        if began > deadline:
            break
    session.close()
    return _percentiles(delays_us)


def opening(contender: Contender, work: Work, folder: Path, address: str, budget_s: float) -> Figures:
    """How long until the first record can be appended to a large directory, opened by a new process.

    The size is what *budget_s* seconds buy at about 2 GB/s: 10 GB in the full run. What the process imports when it
    opens its first one is no part of it.
    """
    gigabytes = max(0.1, min(10.0, 2 * budget_s))
    filler = subprocess.run(child("fill", contender, work, folder, address, gigabytes), check=False)
    if filler.returncode != (-signal.SIGKILL if work is Work.OPEN_KILLED else 0):
        raise RuntimeError(f"the filler of {contender.name} ended with {filler.returncode}")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    _open_and_append(contender, work, elsewhere, address)
    elapsed = _open_and_append(contender, work, folder, address)
    return {"milliseconds": elapsed * 1000, "gigabytes": gigabytes}


def _open_and_append(contender: Contender, work: Work, folder: Path, address: str) -> float:
    began = time.perf_counter()
    session = contender.open(folder, address, work)
    session.append(SMALL)
    elapsed = time.perf_counter() - began
    session.close()
    return elapsed


def fill(contender: Contender, work: Work, folder: Path, address: str, gigabytes: float) -> None:
    """The process before ``opening``: fills the folder, and closes it, or dies."""
    session = contender.open(folder, address, work)
    values = [LARGE] * 20_000
    for _ in itertools.repeat(None, max(1, int(gigabytes * 1e9 / len(LARGE) / len(values)))):
        session.produce(values)
    if work is Work.OPEN_KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    session.close()


_WORKS: dict[Work, Callable[[Contender, Work, Path, str, float], Figures]] = {
    Work.PRODUCE_100: produce,
    Work.PRODUCE_1K: produce,
    Work.PRODUCE_MIXED: produce,
    Work.DURABLE_1: durable,
    Work.DURABLE_16: durable,
    Work.CONSUME_100: consume,
    Work.CONSUME_1K: consume,
    Work.CONSUME_MIXED: consume,
    Work.TAIL_SAME: tail_same,
    Work.TAIL_OTHER: tail_other,
    Work.QUEUE: queue,
    Work.TRANSFORM: transform,
    Work.RANDOM_OFFSET: random_reads,
    Work.RANDOM_TIME: random_reads,
    Work.OPEN_CLEAN: opening,
    Work.OPEN_KILLED: opening,
}

LEADING_FIGURE = {
    work: "messages_per_s"
    if work is Work.QUEUE
    else "milliseconds"
    if work in (Work.OPEN_CLEAN, Work.OPEN_KILLED)
    else "p50_ms"
    if work in (Work.TAIL_SAME, Work.TAIL_OTHER, Work.RANDOM_OFFSET, Work.RANDOM_TIME)
    else "records_per_s"
    for work in Work
}
"""By which contenders are ranked. Of those in milliseconds less is better."""
