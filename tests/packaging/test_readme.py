"""The README's examples run as they stand there, in its order: the Python blocks, then the commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = re.findall(
    r"^logbroker.*$", "".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)), re.MULTILINE
)
SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all blocks run, one after the other."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "events.txt").write_bytes(b"alice:created\nbob:created\nalice:paid\n")
    return folder


ENVIRONMENT = os.environ | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "LOGBROKER_DATA": "data"}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )


def serves(folder: Path, *command: str) -> None:
    """The server starts, on free ports instead of the README's, answers a client, and ends on SIGTERM."""
    anywhere = [re.sub(r":\d+$", ":0", word) for word in command]
    with subprocess.Popen(anywhere, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().removeprefix("listening on ").strip()
        topics = AdminClient({"bootstrap.servers": address}).list_topics(timeout=10).topics
        server.terminate()
    assert "orders" in topics
    assert server.returncode == 0


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_the_readme_runs_after_those_before_it(folder: Path, number: int) -> None:
    program = run(folder, sys.executable, "-W", "error", "-c", BLOCKS[number])
    assert program.returncode == 0, program.stderr
    assert program.stderr == ""


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_command_of_the_readme_runs_after_the_blocks(folder: Path, number: int) -> None:
    command = shlex.split(COMMANDS[number], comments=True)
    if "serve" in command:
        serves(folder, *command)
        return
    if "-f" in command:
        command += ["--timeout", "0.2"]
    done = run(folder, *command)
    assert done.returncode == (3 if "-f" in command else 0), done.stderr
    assert "Traceback" not in done.stderr


def test_installing_and_trying_or_testing_is_one_line_each() -> None:
    first, second = re.findall(r"```sh\n(python3.*?)```", TEXT, flags=re.DOTALL)
    assert first.endswith(" && .venv/bin/logbroker quickstart\n")
    assert second.endswith(" && .venv/bin/pytest -q -n 4 --dist loadfile --no-loadscope-reorder\n")
    assert first.count("\n") == second.count("\n") == 1
    assert f"<!-- test command -->\n```sh\n{second}" in TEXT  # where .ci/run takes it from


def test_there_are_examples_to_run() -> None:
    assert len(BLOCKS) >= 3
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"`(tests/[\w/]+\.py)`", text)
    for link in links:
        assert (page.parent / link).exists(), link
    for file in files:
        assert (ROOT / file).exists(), file
