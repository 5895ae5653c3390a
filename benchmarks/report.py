"""One Markdown table of what the benchmarks measured: ``python -m benchmarks.report [RESULTS.json]``.

Without a file it runs ``pytest benchmarks`` first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run_benchmarks(results: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks", f"--benchmark-json={results}"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def table(results: dict[str, Any]) -> str:
    rows = ["| benchmark | median | figures |", "|---|---|---|"]
    for benchmark in results["benchmarks"]:
        figures = ", ".join(f"{name} {value:,}" for name, value in benchmark["extra_info"].items())
        rows.append(f"| {benchmark['name']} | {benchmark['stats']['median']:.4g} s | {figures} |")
    return "\n".join(rows)


def main() -> None:
    if len(sys.argv) > 1:
        results = Path(sys.argv[1])
        print(table(json.loads(results.read_text(encoding="utf-8"))))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        run_benchmarks(results)
        print(table(json.loads(results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
