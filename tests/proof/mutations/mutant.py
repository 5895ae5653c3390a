"""A mutant: the product with one rule switched off, by lines of a module that are others while it is imported.

The product carries no switches for it. A process that is to run a mutant installs it before it imports the
product; the lines that are to change must be in the module exactly once, or nothing is imported at all.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import textwrap
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = {
    "logbroker_storage": REPOSITORY / "storage" / "logbroker_storage",
    "logbroker": REPOSITORY / "logbroker",
    "logbroker_tools": REPOSITORY / "tools" / "logbroker_tools",
}


class StaleMutantError(Exception):
    """The module does not hold the mutant's lines, or not once: the product has changed, and the table must, too."""


@dataclass(frozen=True)
class Mutant:
    """One rule, how it is switched off, and who notices.

    *old* and *new* are whole lines of *module*, indented among themselves as they are there, but from the margin.
    """

    rule: str
    module: str
    old: str
    new: str
    scenarios: tuple[str, ...]
    """Each of them notices."""

    def source(self) -> str:
        """The text of the module with the rule switched off."""
        return rewritten(source_path(self.module).read_text(), self)


def source_path(module: str) -> Path:
    package, _, rest = module.partition(".")
    path = SOURCES[package].joinpath(*rest.split(".")) if rest else SOURCES[package]
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def rewritten(source: str, mutant: Mutant) -> str:
    """*source* with the lines of *mutant* in the place of those that it replaces.

    Raises:
        StaleMutantError: they are not there exactly once.
    """
    lines = source.splitlines()
    old = _lines(mutant.old)
    places = [at for at in range(len(lines)) if _margin_removed(lines[at : at + len(old)]) == old]
    if len(places) != 1:
        raise StaleMutantError(
            f"{mutant.rule!r}: these lines are {len(places)} times in {mutant.module}, not once:\n{mutant.old}"
        )
    (at,) = places
    margin = " " * min(_indentation(line) for line in lines[at : at + len(old)] if line)
    new = [margin + line if line else line for line in _lines(mutant.new, beside=mutant.old)]
    return "\n".join([*lines[:at], *new, *lines[at + len(old) :], ""])


def _lines(text: str, *, beside: str = "") -> list[str]:
    """*text* moved to the margin; as far as *beside* is moved, if it is indented as that is."""
    margin = min((_indentation(line) for line in beside.splitlines() if line.strip()), default=0)
    lines = text.strip("\n").rstrip().splitlines()
    if margin and all(_indentation(line) >= margin for line in lines if line.strip()):
        return [line[margin:] for line in lines]
    return textwrap.dedent("\n".join(lines)).splitlines()


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _margin_removed(lines: Sequence[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).splitlines()


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the mutant's source, whatever bytecode is kept of the module."""

    def __init__(self, name: str, path: str, mutant: Mutant) -> None:
        super().__init__(name, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> types.CodeType:
        return compile(self._mutant.source(), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        loader = _Loader(fullname, str(source_path(fullname)), self._mutant)
        return importlib.machinery.ModuleSpec(fullname, loader, origin=loader.path)


def install(mutant: Mutant) -> None:
    """Have this process import the product with *mutant*; before it imports any of it."""
    imported = sorted(set(SOURCES) & set(sys.modules))
    assert not imported, f"{imported[0]} is imported already"
    mutant.source()
    sys.meta_path.insert(0, _Finder(mutant))
