"""What is done to the server, its clients and the network between them, and when.

A plan is drawn from a seed before it begins. Every step puts right what it did.
"""

from __future__ import annotations

import enum
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .proxy import FAIR, Proxy, Weather


class Fault(enum.Enum):
    KILL_SERVER = "kill -9 of the server"
    STOP_SERVER = "SIGSTOP of the server"
    KILL_CLIENT = "kill -9 of clients"
    CUT = "cut connections"
    SLOW = "delayed and stalled connections"
    REPEAT = "bytes and requests sent twice"


WEATHERS = {
    Fault.CUT: Weather(cut=0.03, delay=0.05),
    Fault.SLOW: Weather(delay=0.4, stall=0.004),
    Fault.REPEAT: Weather(garble=0.03, repeat=0.4, late=0.1, delay=0.1),
}
LONGEST_STOP_S = 3.5  # above the session time-out of the members of KIP-848 groups


class Step(NamedTuple):
    fault: Fault
    pause_s: float
    """Of peace before it."""
    lasts_s: float
    victim: int
    """Which of the clients, where it is about one."""


class Target(NamedTuple):
    """What a nemesis may get at."""

    kill_server: Callable[[], None]
    start_server: Callable[[], None]
    stop_server: Callable[[], None]
    continue_server: Callable[[], None]
    replace_client: Callable[[int], None]
    proxy: Proxy


def plan(rng: random.Random, faults: Sequence[Fault], seconds: float) -> list[Step]:
    """Steps of these faults, for about so long."""
    steps = []
    total_s = 0.0
    while total_s < seconds:
        fault = rng.choice(faults)
        longest_s = {Fault.STOP_SERVER: LONGEST_STOP_S, Fault.KILL_CLIENT: 0.0, Fault.KILL_SERVER: 0.5}.get(
            fault, 2.0
        )
        step = Step(fault, rng.uniform(0.2, 1.0), rng.uniform(0, longest_s), rng.randrange(1 << 16))
        steps.append(step)
        total_s += step.pause_s + step.lasts_s
    return steps


def inflict(steps: Sequence[Step], target: Target, weather: Weather = FAIR) -> None:
    """Go through *steps*. *weather* is that of the network where no step makes it other; it is fair at the end."""
    target.proxy.weather = weather
    for step in steps:
        time.sleep(step.pause_s)
        match step.fault:
            case Fault.KILL_SERVER:
                target.kill_server()
                time.sleep(step.lasts_s)
                target.start_server()
            case Fault.STOP_SERVER:
                target.stop_server()
                time.sleep(step.lasts_s)
                target.continue_server()
            case Fault.KILL_CLIENT:
                target.replace_client(step.victim)
            case _:
                target.proxy.weather = WEATHERS[step.fault]
                time.sleep(step.lasts_s)
                target.proxy.weather = weather
    target.proxy.weather = FAIR
