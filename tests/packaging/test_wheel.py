"""What the wheel installs: three import packages, typed, two commands, one pytest plugin."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


CAN_COMPILE = (
    shutil.which("cc") is not None and Path(sysconfig.get_path("include"), "Python.h").exists()
)  # as a distribution's Python without its header files cannot


def built(target: Path, **environment: str) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--wheel-dir", str(target), str(ROOT)], env={**os.environ, **environment}, check=True
    )
    return zipfile.ZipFile(next(target.glob("*.whl")))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return built(tmp_path_factory.mktemp("wheel"))


def twins_in(wheel: zipfile.ZipFile) -> list[str]:
    return [name for name in wheel.namelist() if name.startswith("logbroker_storage/_record_loops.")]


@pytest.mark.skipif(not CAN_COMPILE, reason="there is no C compiler here, or no header files of Python")
def test_with_a_compiler_the_wheel_has_the_compiled_codec_and_is_of_this_platform(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    assert twins_in(wheel) == [f"logbroker_storage/_record_loops{sysconfig.get_config_var('EXT_SUFFIX')}"]
    assert not str(wheel.filename).endswith("-any.whl")
    wheel.extractall(tmp_path)
    program = "from logbroker_storage.record_twin import compiled_loops as c; print(c().__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path)), done.stdout


def test_without_a_compiler_the_wheel_is_plain_python(tmp_path: Path) -> None:
    plain = built(tmp_path, CC="/bin/false")
    assert twins_in(plain) == []
    assert str(plain.filename).endswith("-py3-none-any.whl")


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


def test_the_source_distribution_has_what_the_readme_links_to() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    linked = re.findall(r"\]\(([^):#]+)\)", (ROOT / "README.md").read_text())
    assert "docs/durability.md" in linked
    assert {target.split("/")[0] for target in linked} <= set(settings["sdist"]["include"])
