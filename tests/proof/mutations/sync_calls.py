"""Where the product waits for the disk: every call of a sync in its source, so that none is left without a mutant."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from .mutant import SOURCES

# Of the file seam, of a partition's log, and of what leads there.
SYNC_METHODS = {"fsync", "fdatasync", "fsync_directory", "replace_file"}
WAITING_METHODS = {"sync", "sync_below", "wait_durable", "durable"}


class SyncCall(NamedTuple):
    """A call that waits for the disk."""

    module: str
    function: str
    call: str

    def __str__(self) -> str:
        return f"{self.module} {self.function}: {self.call}"


def sync_calls(module: str, source: str) -> Counter[SyncCall]:
    """The syncs in the *source* of a module, and how often each is there."""
    return Counter(_calls(module, ast.parse(source), ()))


def _calls(module: str, node: ast.AST, function: tuple[str, ...]) -> Iterator[SyncCall]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _calls(module, child, (*function, child.name))
            continue
        if isinstance(child, ast.Call) and _name(child.func) in SYNC_METHODS | WAITING_METHODS | {"_sync"}:
            yield SyncCall(module, ".".join(function), ast.unparse(child))
        yield from _calls(module, child, function)


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def modules() -> Iterator[tuple[str, str]]:
    """Every module of the product, with its source; what is only there for tests is left out."""
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[0] == "testing":
                continue
            name = ".".join([package, *parts]).removesuffix(".__init__")
            yield name, path.read_text()


def all_sync_calls() -> Counter[SyncCall]:
    """Those of the whole product."""
    found: Counter[SyncCall] = Counter()
    for name, source in modules():
        found += sync_calls(name, source)
    return found
