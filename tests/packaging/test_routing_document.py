"""The example of docs/routing.md runs, and prints what the page says of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "routing.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"<!-- example: run -->\n\n```sh\n(.*?)```", re.DOTALL)


def test_the_example_does_what_it_says(tmp_path: Path) -> None:
    (script,) = EXAMPLE.findall(TEXT)
    command = f'logbroker() {{ "{sys.executable}" -m logbroker.cli.app "$@"; }}\nset -e\n'
    environment = os.environ | {"LOGBROKER_DATA": str(tmp_path / "data")}
    ran = subprocess.run(
        ["bash", "-c", command + script], capture_output=True, text=True, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        '{"total": 250}',
        '{"total": 20}',
        "binding\tshop.*->large\tlarge\twhen\tits condition is false",
        "binding\tshop.orders->returns\treturns\ttaken\tit takes the record",
        "binding\tshop.*->rest\trest\trouted elsewhere\tanother binding took the record",
        'message\treturns\t-\t{"total": 99}\ttype=returned',
    ]
    assert "routed 2 records" in ran.stderr
