"""The rounds of the proof: faults of one kind, of another, and then all of them at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from ..proof import Row, Scope, delete_folder, new_folder
from .nemesis import Fault
from .operations import Send
from .proxy import FAIR, Weather
from .rounds import Outcome, Round

ROUND_S = 3.0
LONG_ROUND_S = 10.0
LONG_ROUNDS = 40
MOST_SHOWN = 20


class Scenario(NamedTuple):
    name: str
    faults: tuple[Fault, ...]
    embedded: bool
    """Whether processes that use the directory itself take part: then it stays open when the server dies."""
    weather: Weather = FAIR


SCENARIOS = (
    Scenario("kill -9 of the server", (Fault.KILL_SERVER,), embedded=False),
    Scenario(
        "SIGSTOP of the server, kill -9 of clients", (Fault.STOP_SERVER, Fault.KILL_CLIENT), embedded=True
    ),
    Scenario("connections cut, delayed, stalled", (Fault.CUT, Fault.SLOW), embedded=False),
    Scenario("bytes and requests sent twice", (Fault.REPEAT,), embedded=True),
    Scenario(
        "all of it at once", tuple(Fault), embedded=True, weather=Weather(cut=0.003, delay=0.1, repeat=0.02)
    ),
)


def campaign(scope: Scope) -> Iterator[Row]:
    for scenario in SCENARIOS:
        operations = 0
        faults: Counter[str] = Counter()
        rounds = scope.count(1, LONG_ROUNDS)
        for number in range(rounds):
            outcome = _round(scope, scenario, number)
            operations += outcome.history.size
            faults += outcome.faults
        unit = f"operations, rounds: {rounds}, faults: {faults.total():,}"
        yield Row(scenario.name, operations, unit, scope.seed)


def _round(scope: Scope, scenario: Scenario, number: int) -> Outcome:
    """One round, in a directory of its own.

    Raises:
        AssertionError: it broke a promise.
    """
    rng = scope.rng(f"{scenario.name} {number}")
    folder = new_folder()
    try:
        seconds = LONG_ROUND_S if scope.is_long else ROUND_S
        outcome = Round(folder, rng, embedded=scenario.embedded).run(
            scenario.faults, seconds, scenario.weather
        )
    finally:
        delete_folder(folder)
    if outcome.findings:
        raise AssertionError(_told(scope, scenario, number, outcome))
    assert _acknowledged(outcome.history.sends.values()) > 100, f"nothing went on:\n{outcome.log}"
    return outcome


def _acknowledged(sends: object) -> int:
    return sum(isinstance(send, Send) and send.offset is not None for send in sends)  # type: ignore[attr-defined]


def _told(scope: Scope, scenario: Scenario, number: int, outcome: Outcome) -> str:
    kinds = Counter(finding.kind.name for finding in outcome.findings)
    shown = "\n".join(str(finding)[:2000] for finding in outcome.findings[:MOST_SHOWN])
    return (
        f"seed {scope.seed}, round {number} of {scenario.name!r}, with {dict(outcome.faults)}, found {dict(kinds)}:\n"
        f"{shown}\n\n{outcome.log}"
    )
