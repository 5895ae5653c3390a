"""Builds ``_record_loops``, the compiled twin of ``record_loops``, when the package is built or installed.

It is optional: without a compiler, or without Python's header files, the package is what it is without it, and
the build says why. ``record_twin`` picks at import. For an installation in place the twin lies beside its source.
"""

from __future__ import annotations

import runpy
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TWIN = "_record_loops"
PACKAGE = Path("storage", "logbroker_storage")


class TwinBuildHook(BuildHookInterface[Any]):
    """Adds the twin to the wheel, which is one of this platform then."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package = Path(self.root) / PACKAGE
        self._folder = tempfile.mkdtemp(prefix="logbroker-build-")
        try:
            built = build_twin(package, Path(self._folder))
        except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a compiler and its driver may raise)
            self.app.display_warning(f"the record codec stays plain Python, which is slower: {error!r}")
            return
        if version == "editable":
            staged = shutil.copy(built, package / f"{built.name}.new")
            Path(staged).replace(package / built.name)  # at once: a process may have the old one mapped
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"][str(built)] = f"{PACKAGE.name}/{built.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        shutil.rmtree(self._folder)


def build_twin(package: Path, folder: Path) -> Path:
    """Compile the twin of the loops in *package*, in *folder*; the path of the extension.

    Raises:
        Exception: whatever Cython, setuptools or the compiler have to say.
    """
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    digest = runpy.run_path(str(package / "twin_digest.py"))["source_digest"](package)
    sources = folder / package.name
    sources.mkdir()
    source = sources / f"{TWIN}.py"
    text = (package / "record_loops.py").read_text(encoding="utf-8")
    source.write_text(f"{text}\n\nSOURCE_DIGEST = {digest!r}\n", encoding="utf-8")
    shutil.copy(package / "record_loops.pxd", sources / f"{TWIN}.pxd")
    (sources / "__init__.py").touch()
    name = f"{package.name}.{TWIN}"
    extensions = cythonize(
        [Extension(name, [str(source)])],
        compiler_directives={"annotation_typing": False, "language_level": 3, "wraparound": False},
        quiet=True,
    )
    command = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib = str(folder)
    command.build_temp = str(folder / "objects")
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath(name))
