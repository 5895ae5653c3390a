"""What the wheel installs: three import packages, typed, two commands, one pytest plugin."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(target), str(ROOT)], check=True)
    return zipfile.ZipFile(next(target.glob("*.whl")))


def test_the_wheel_has_exactly_three_import_names(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "logbroker",
        "logbroker_storage",
        "logbroker_tools",
    }


def test_each_package_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    assert {name for name in wheel.namelist() if name.endswith("py.typed")} == {
        "logbroker/py.typed",
        "logbroker_storage/py.typed",
        "logbroker_tools/py.typed",
    }


def test_the_wheel_has_two_commands_and_a_pytest_plugin(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    lines = set(wheel.read(name).decode().splitlines())
    assert "logbroker = logbroker.cli.app:main" in lines
    assert "logbroker-inspect = logbroker_tools.cli:main" in lines
    assert "logbroker = logbroker.testing" in lines


def test_the_licence_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_public_names_are_all_importable_and_documented() -> None:
    import logbroker

    for name in logbroker.__all__:
        value = getattr(logbroker, name)
        assert name == "__version__" or value.__doc__, name
