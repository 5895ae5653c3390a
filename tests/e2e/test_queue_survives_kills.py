"""Four worker processes on one queue, one of them killed each second: no message is lost, doubled or in two hands.

With order keys, and with dead letters; a plain queue is among what ``tests/proof/kills`` kills far more often.
The proof is in the workers' own logs (``queue_worker``). When a worker says nothing any more, what it had in its
hands may be anywhere; until then it has a message for certain

    from   the return of the call that received it
    to     the first of: its lease's end, counted from before that call; the call that settles it; the kill signal
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

import logbroker
from logbroker.dead_letters import death_of

from .queue_worker import LEASE_S, REJECTED, RELEASED

WORKERS = 4
CLOCK_GRAIN_S = 0.002  # leases are counted in whole milliseconds
KEYS = 9

Place = tuple[int, int]  # partition and offset


class Hold(NamedTuple):
    """What a worker had in its hands for certain, and when it can have come there."""

    worker: int
    place: Place
    key: str
    called: float
    begin: float
    end: float


class Diaries:
    """What all workers said, and when they were killed."""

    def __init__(self) -> None:
        self.holds: list[Hold] = []
        self.outcomes: dict[Place, list[tuple[float, str]]] = defaultdict(list)  # by time of the return
        self.unanswered: set[Place] = set()  # settled by somebody who was killed meanwhile
        self.begun: dict[Place, float] = {}  # when the acceptance was asked for
        self.values: dict[Place, int] = {}

    def read(self, worker: int, text: str, killed: float) -> None:
        received: dict[Place, tuple[float, float, str]] = {}
        settling: dict[Place, float] = {}

        def over(place: Place, until: float) -> None:
            called, begin, key = received.pop(place)
            end = min(until, called + LEASE_S - CLOCK_GRAIN_S, killed)
            self.holds.append(Hold(worker, place, key, called, begin, end))

        for line in text.splitlines():
            kind, *fields = line.split()
            if kind == "received":
                place = (int(fields[2]), int(fields[3]))
                if place in received:
                    over(place, float(fields[0]))
                received[place] = (float(fields[0]), float(fields[1]), fields[4])
                self.values[place] = int(fields[5])
                continue
            place = (int(fields[1]), int(fields[2]))
            if kind == "settling":
                over(place, float(fields[0]))
                settling[place] = float(fields[0])
            else:
                begun = settling.pop(place)
                if kind == "accepted":
                    self.begun[place] = begun
                self.outcomes[place].append((float(fields[0]), kind))
        for place in list(received):
            over(place, killed)
        self.unanswered.update(settling)

    def accepted(self) -> dict[Place, float]:
        """When the (first) acceptance of each message was acknowledged."""
        return {
            place: min(at for at, kind in outcomes if kind == "accepted")
            for place, outcomes in self.outcomes.items()
            if any(kind == "accepted" for _, kind in outcomes)
        }

    # The proof ----------------------------------------------------------------------------------------

    def assert_nothing_in_two_hands(self, *, by_key: bool = False) -> None:
        groups: dict[object, list[Hold]] = defaultdict(list)
        for hold in self.holds:
            groups[(hold.place[0], hold.key) if by_key else hold.place].append(hold)
        for held in groups.values():
            held.sort(key=lambda hold: hold.begin)
            for number, one in enumerate(held):
                for other in held[number + 1 :]:
                    if other.called > one.end:
                        continue
                    if by_key and other.worker == one.worker:
                        continue
                    came_in_between = one.begin <= other.called and other.begin <= one.end
                    both = max(one.begin, other.begin) < min(one.end, other.end)
                    assert not came_in_between, (one, other)
                    assert not both, (one, other)

    def assert_accepted_once_and_never_seen_again(self) -> None:
        for place, outcomes in self.outcomes.items():
            kinds = Counter(kind for _, kind in outcomes)
            assert kinds["accepted"] + kinds["rejected"] <= 1, (place, outcomes)
        accepted = self.accepted()
        for hold in self.holds:
            assert hold.called <= accepted.get(hold.place, hold.called), (hold, accepted[hold.place])

    def assert_none_lost(self, sent: set[Place], buried: set[Place] = frozenset()) -> None:  # type: ignore[assignment]
        done = self.accepted().keys() | buried
        assert set(self.values) == sent
        assert sent - done <= self.unanswered, sent - done - self.unanswered

    def assert_in_order_of_keys(self) -> None:
        """Nobody began to accept a message when a later one of its key was accepted already."""
        keys = {hold.place: hold.key for hold in self.holds}
        last_begun: dict[tuple[int, str], float] = defaultdict(float)
        for (partition, offset), accepted in sorted(self.accepted().items()):
            key = (partition, keys[partition, offset])
            assert last_begun[key] <= accepted, (key, offset)
            last_begun[key] = max(last_begun[key], self.begun[partition, offset])


class Crew:
    """The workers, each with a diary of its own; whoever is killed is replaced."""

    def __init__(self, data: Path, folder: Path, habit: str) -> None:
        self._data, self._folder, self._habit = data, folder, habit
        self._started: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._killed: dict[int, float] = {}  # by number
        self._working = [self._start() for _ in range(WORKERS)]

    def _start(self) -> int:
        number = len(self._started)
        diary = self._folder / f"worker-{number}.log"
        diary.touch()
        program = str(Path(__file__).with_name("queue_worker.py"))
        process = subprocess.Popen(
            [sys.executable, program, str(self._data), str(diary), self._habit], stderr=subprocess.PIPE
        )
        self._started.append((process, diary))
        return number

    def _kill(self, number: int) -> None:
        process, _ = self._started[number]
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        self._killed[number] = time.monotonic()
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()

    def lose_one(self, rng: random.Random) -> None:
        place = rng.randrange(WORKERS)
        self._kill(self._working[place])
        self._working[place] = self._start()

    def stop_one(self, rng: random.Random) -> None:
        """Let one of them stand still for longer than its leases, whatever it was at."""
        process, _ = self._started[rng.choice(self._working)]
        process.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_S * 1.5)
        process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        for number in self._working:
            if self._started[number][0].poll() is None:
                self._kill(number)
        self._working = []

    def diaries(self) -> Diaries:
        diaries = Diaries()
        for number, (_, path) in enumerate(self._started):
            diaries.read(number, path.read_text(), self._killed[number])
        return diaries


class Sender:
    """Sends numbers until it is told to stop; each of them is acknowledged."""

    def __init__(self, broker: logbroker.Broker, *, keys: int) -> None:
        self._broker = broker
        self._keys = keys
        self._stop = threading.Event()
        self.sent: dict[Place, int] = {}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        with self._broker.producer() as producer:
            while not self._stop.wait(0.02):
                receipts = []
                for _ in range(20):
                    key = b"k%d" % (number % self._keys) if self._keys else None
                    receipts.append((number, producer.send("jobs", b"%d" % number, key=key)))
                    number += 1
                for value, receipt in receipts:
                    metadata = receipt.result()
                    self.sent[metadata.partition, metadata.offset] = value

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def wait_until_done(broker: logbroker.Broker, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := broker.subscription("workers").lag) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == 0, broker.subscription("workers")


def buried(broker: logbroker.Broker) -> Counter[Place]:
    """How many dead letters there are of each message."""
    found: Counter[Place] = Counter()
    with broker.consumer("jobs.dead") as consumer:
        while records := consumer.poll(1000, 0):
            for record in records:
                death = death_of(record)
                assert death is not None
                assert death.partition is not None
                assert death.offset is not None
                found[death.partition, death.offset] += 1
    return found


def run(
    tmp_path: Path,
    rng: random.Random,
    *,
    rounds: int,
    habit: str = "accept",
    keys: int = 0,
    stops: bool = False,
    **options: object,
) -> tuple[Diaries, dict[Place, int], Counter[Place]]:
    """Let a crew work while one of it is killed (or stopped) each round; what it said, was sent, and is buried."""
    data = tmp_path / "data"
    with logbroker.open(data) as broker:
        broker.create_topic("jobs", partitions=2)
        broker.create_topic("jobs.dead")
        broker.create_subscription("workers", topic="jobs", lease=LEASE_S, **options)  # type: ignore[arg-type]
        sender = Sender(broker, keys=keys)
        crew = Crew(data, tmp_path, habit)
        try:
            for number in range(rounds):
                time.sleep(rng.uniform(0.6, 1.4))
                if stops and number % 3 == 0:
                    crew.stop_one(rng)
                else:
                    crew.lose_one(rng)
            sender.stop()
            wait_until_done(broker, seconds=60)
        finally:
            sender.stop()
            crew.end()
        letters = buried(broker)
    diaries = crew.diaries()
    print(
        f"{len(sender.sent)} messages, {len(diaries.holds)} deliveries, {sum(letters.values())} dead letters"
    )
    return diaries, sender.sent, letters


@pytest.mark.slow
def test_no_two_workers_have_messages_of_one_key(tmp_path: Path, rng: random.Random, long_run: bool) -> None:
    diaries, sent, _ = run(
        tmp_path,
        rng,
        rounds=60 if long_run else 6,
        keys=KEYS,
        stops=True,
        ordered=True,
        max_deliveries=10_000,
    )
    diaries.assert_nothing_in_two_hands()
    diaries.assert_nothing_in_two_hands(by_key=True)
    diaries.assert_accepted_once_and_never_seen_again()
    diaries.assert_none_lost(set(sent))
    diaries.assert_in_order_of_keys()


@pytest.mark.slow
def test_every_message_that_is_given_up_has_one_dead_letter(
    tmp_path: Path, rng: random.Random, long_run: bool
) -> None:
    diaries, sent, letters = run(
        tmp_path,
        rng,
        rounds=60 if long_run else 6,
        habit="bury",
        dead_letter="jobs.dead",
        max_deliveries=3,
    )
    diaries.assert_nothing_in_two_hands()
    diaries.assert_accepted_once_and_never_seen_again()
    diaries.assert_none_lost(set(sent), set(letters))
    assert set(letters.values()) == {1}
    given_up = {place for place, number in sent.items() if number % REJECTED == 0 or number % RELEASED == 0}
    assert set(letters) >= given_up
    assert not letters.keys() & diaries.accepted().keys()


def test_a_worker_that_stood_still_beyond_its_lease_accepts_in_vain(tmp_path: Path) -> None:
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic("jobs")
        broker.create_subscription("workers", topic="jobs", lease=LEASE_S)
        with broker.producer() as producer:
            producer.send("jobs", b"0")
        program = str(Path(__file__).with_name("queue_worker.py"))
        command = [sys.executable, program, str(tmp_path / "data"), "-", "hold"]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == "held\n"
        worker.send_signal(signal.SIGSTOP)
        with broker.queue(subscription="workers") as queue:
            message = queue.receive(timeout=30)
            assert message.delivery_count == 2
            worker.send_signal(signal.SIGCONT)
            worker.stdin.write("go on\n")
            worker.stdin.close()
            assert worker.stdout.readline() == "lost\n"
            assert worker.wait(timeout=30) == 0
            worker.stdout.close()
            message.accept()
        assert broker.subscription("workers").lag == 0


# That the proof can fail ------------------------------------------------------------------------------------

GOOD = """\
received 1.0 1.1 0 7 k 1
settling 1.5 0 7
accepted 1.6 0 7
"""


@pytest.mark.parametrize(
    ("other", "broken"),
    [
        ("received 1.7 1.8 0 7 k 1", "accepted_once"),  # after the acknowledged acceptance
        ("received 1.2 1.3 0 7 k 1\nsettling 1.4 0 7\nlost 1.5 0 7", "two_hands"),
        ("received 1.2 1.3 0 8 k 2\nsettling 1.4 0 8\naccepted 1.45 0 8", "by_key"),
        ("received 0.5 0.6 0 8 k 2\nsettling 0.7 0 8\naccepted 0.8 0 8", "order"),
        ("received 1.55 1.7 0 7 k 1\nsettling 1.8 0 7\naccepted 1.9 0 7", "accepted_once"),
        ("received 0.1 0.2 0 8 k 2", "none_lost"),
        ("received 0.1 0.2 0 7 k 1", None),
        ("received 1.2 1.7 0 7 k 1\nsettling 1.8 0 7\nlost 1.9 0 7", None),
    ],
)
def test_the_proof_fails_for_workers_that_broke_a_rule(other: str, broken: str | None) -> None:
    diaries = Diaries()
    diaries.read(1, GOOD, killed=9.0)
    diaries.read(2, other, killed=0.9 if broken is None and other.startswith("received 0.1") else 9.0)
    proofs = {
        "two_hands": diaries.assert_nothing_in_two_hands,
        "accepted_once": diaries.assert_accepted_once_and_never_seen_again,
        "by_key": lambda: diaries.assert_nothing_in_two_hands(by_key=True),
        "none_lost": lambda: diaries.assert_none_lost(set(diaries.values)),
        "order": diaries.assert_in_order_of_keys,
    }
    failed = set()
    for name, proof in proofs.items():
        try:
            proof()
        except AssertionError:
            failed.add(name)
    if broken is None:
        assert failed == set()
    else:
        assert broken in failed
