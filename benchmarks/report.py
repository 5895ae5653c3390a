"""One Markdown table of what the benchmarks measured: ``python -m benchmarks.report [RESULTS.json]``.

Without a file it runs ``pytest benchmarks`` first; further arguments go to pytest. Nothing fails when a
goal is missed: a busy machine is no bug. The goals are stated for a quiet one.
"""

from __future__ import annotations

import json
import operator
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """What a figure of a benchmark should be."""

    benchmark: str
    figure: str
    holds: Callable[[float, float], bool]
    bound: float

    @property
    def text(self) -> str:
        return f"{'at least' if self.holds is operator.ge else 'at most'} {self.bound:,}"


GOALS = [
    Goal("test_send_to_the_page_cache[send]", "records_per_s_best_round", operator.ge, 3_000_000),
    Goal("test_send_to_the_page_cache[send]", "times_sqlite_bulk_insert", operator.ge, 3),
    Goal("test_send_to_the_page_cache[send_many]", "records_per_s_best_round", operator.ge, 6_000_000),
    Goal("test_consume_from_the_start[None]", "records_per_s_best_round", operator.ge, 6_000_000),
    Goal("test_consume_from_the_start[g]", "records_per_s_best_round", operator.ge, 6_000_000),
    Goal("test_memory_stays_flat", "ratio_end_to_tenth", operator.le, 1.1),
    Goal("test_single_durable_append", "ratio_to_bare", operator.le, 1.15),
    Goal("test_open_a_thousand_partitions[kept]", "seconds", operator.le, 1),
    Goal("test_read_one_record_at_a_random_offset[1048576]", "ratio_to_10_MB", operator.le, 1.3),
    Goal("test_read_one_record_at_a_random_offset[1073741824]", "ratio_to_10_MB", operator.le, 1.3),
    Goal(
        "test_wake_up_of_a_consumer_in_another_process",
        "p99_us_behind_the_acknowledgement",
        operator.le,
        1000,
    ),
    Goal("test_pipeline", "records_per_s", operator.ge, 100_000),
    Goal("test_an_idle_consumer", "percent_of_a_core", operator.le, 0.1),
    Goal("test_round_trip_between_two_processes[os]", "p50_us", operator.le, 1000),
    Goal("test_produce_over_the_network[100]", "ratio_to_clients_ceiling", operator.ge, 0.8),
    Goal("test_fetch_over_the_network[1024]", "gigabytes_per_s", operator.ge, 2),
    Goal("test_receive_and_accept_in_batches", "messages_per_s", operator.ge, 300_000),
    *(
        Goal(f"test_beside_a_peer[{peer}]", "times_peer", operator.ge, 10)
        for peer in (
            "litequeue",
            "persist-queue Queue",
            "persist-queue SQLiteAckQueue",
            "persist-queue UniqueAckQ",
        )
    ),
]


def run_benchmarks(results: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks", f"--benchmark-json={results}", *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr)


def table(results: dict[str, Any]) -> str:
    rows = ["| benchmark | figure | measured | goal | |", "|---|---|---:|---|---|"]
    for benchmark in results["benchmarks"]:
        name = benchmark["name"]
        for figure, value in benchmark["extra_info"].items():
            goal = next((goal for goal in GOALS if goal[:2] == (name, figure)), None)
            text, verdict = (
                ("", "") if goal is None else (goal.text, "✓" if goal.holds(value, goal.bound) else "✗")
            )
            shown = name.removeprefix("test_").replace("_", " ")
            rows.append(f"| {shown} | {figure.replace('_', ' ')} | {value:,} | {text} | {verdict} |")
    return "\n".join(rows)


def main() -> None:
    arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        if arguments and arguments[0].endswith(".json"):
            results = Path(arguments[0])
        else:
            results = Path(folder) / "results.json"
            run_benchmarks(results, arguments)
        print(table(json.loads(results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
