"""The examples of docs/request-reply.md run as they stand there, and its headers are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from logbroker.request_reply.headers import REPLY_HEADERS, REQUEST_HEADERS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "request-reply.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
(COMMANDS,) = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "LOGBROKER_DATA": "data",
}


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_the_document_runs_by_itself(tmp_path: Path, block: str) -> None:
    program = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert program.returncode == 0, program.stderr


def test_the_commands_run_one_after_the_other(tmp_path: Path) -> None:
    script = f"set -e\n{COMMANDS}\nkill $!\nwait $!\n"
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"HELLO{")
    assert done.stdout.endswith(b"}\nHELLO\n")


def test_the_documented_headers_are_those_of_the_code() -> None:
    section = TEXT.partition("## Headers")[2].partition("##")[0]
    documented = {
        name
        for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        for name in re.findall("`(.*?)`", row)
    }
    assert documented == REQUEST_HEADERS | REPLY_HEADERS
