"""Where pipelines come from: TOML, a mapping, a Python function, an entry point.

The one module of the package that reads files, imports what a name says, and looks at installed packages.

    source                                     is
    a Pipeline                                 itself
    a mapping                                  as the TOML that says the same
    a function                                 a pipeline of one step; it cannot be stored
    a path, or text that ends with ``.toml``   a file; names in it are relative to its directory
    text of several lines, or with a ``=``     TOML
    other text                                 an entry point of the group ``logbroker.transforms``
"""

from __future__ import annotations

import importlib
import os
import tomllib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

import tomli_w

from logbroker_storage.clock import SYSTEM_CLOCK, Clock
from logbroker_storage.errors import InvalidRequestError, LogbrokerError

from ..exception_text import named
from ..transform_outputs import Function
from .catalog import is_unknown_kind, kind_of, parse_step, step_table
from .options import Form, StepOptions
from .pipeline import BuiltStep, FunctionPipeline, Pipeline, WrongFormError
from .steps.python import python_step

PIPELINES_GROUP = "logbroker.transforms"
STEPS_GROUP = "logbroker.transform_steps"
MAX_FILE_BYTES = 16 << 20
MAX_STEPS = 200

Source = str | os.PathLike[str] | Mapping[str, Any] | Pipeline | Function


class PipelineError(InvalidRequestError):
    """A pipeline cannot be used as it is written; ``step`` is the number of the wrong step, None for the whole."""

    def __init__(self, message: str, *, step: int | None = None) -> None:
        self.step = step
        super().__init__(message)


def load_pipeline(source: Source, *, clock: Clock = SYSTEM_CLOCK) -> Pipeline:
    """The pipeline that *source* says; see the table above.

    Args:
        source: what to load.
        clock: what the step ``timestamp`` with ``now = true`` reads.

    Raises:
        PipelineError: it cannot be used, and why; an ``InvalidRequestError``.
    """
    if isinstance(source, Pipeline):
        return source
    if isinstance(source, Mapping):
        return _from_table(dict(source), _Surroundings(os.getcwd(), clock))
    if isinstance(source, os.PathLike) or (isinstance(source, str) and _is_path(source)):
        return _from_file(os.fspath(source), clock)
    if isinstance(source, str):
        if "\n" in source or "=" in source:
            return _from_table(_parse_toml(source, "the pipeline"), _Surroundings(os.getcwd(), clock))
        return _from_entry_point(source, clock)
    if callable(source):
        return FunctionPipeline(getattr(source, "__qualname__", repr(source)), source, None)
    raise PipelineError(
        f"a pipeline is a TOML file, a mapping, a function or the name of an entry point, "
        f"not {type(source).__name__}"
    )


def _is_path(source: str) -> bool:
    return "\n" not in source and (source.endswith(".toml") or os.sep in source) and "=" not in source


# TOML -----------------------------------------------------------------------------------------------------


def _from_file(path: str, clock: Clock) -> Pipeline:
    around = _Surroundings(os.path.dirname(os.path.abspath(path)), clock)
    try:
        text = around.read_file(os.path.abspath(path)).decode()
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path} is not UTF-8: {error}") from None
    table = _parse_toml(text, path)
    table.setdefault("name", os.path.splitext(os.path.basename(path))[0])
    return _from_table(table, around)


def _parse_toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PipelineError(f"{where} is not TOML: {error}") from None
    except RecursionError:
        raise PipelineError(f"{where} is nested too deep") from None


def _from_table(table: dict[str, Any], around: _Surroundings) -> Pipeline:
    if set(table) == {"entry_point"} and isinstance(table["entry_point"], str):
        return _from_entry_point(table["entry_point"], around.clock)
    for name in table:
        if name not in ("name", "step"):
            raise PipelineError(f"there is no {name!r} in a pipeline; it has name and [[step]] tables")
    name, tables = table.get("name", "pipeline"), table.get("step", [])
    if not isinstance(name, str):
        raise PipelineError(f"name is text, not {type(name).__name__}")
    if not isinstance(tables, list) or not all(isinstance(step, Mapping) for step in tables):
        raise PipelineError("the steps are [[step]] tables")
    if not 0 < len(tables) <= MAX_STEPS:
        raise PipelineError(f"a pipeline has 1 to {MAX_STEPS} [[step]] tables, not {len(tables)}")
    steps = [_step(number, step, around) for number, step in enumerate(tables, 1)]
    stored = {"name": name, "step": [step.table for step in steps]}
    try:
        return Pipeline(name, steps, tomli_w.dumps(stored))
    except (TypeError, ValueError) as error:
        raise PipelineError(f"the mapping has a value that TOML cannot say: {error}") from None
    except WrongFormError as error:
        raise PipelineError(str(error), step=error.step) from None
    except InvalidRequestError as error:
        raise PipelineError(str(error), step=len(steps)) from None


def _step(number: int, table: Mapping[str, Any], around: _Surroundings) -> BuiltStep:
    try:
        if is_unknown_kind(table):
            return _installed_step(table)
        kind, options = parse_step(table)
        options = options.with_files_inlined(around)
        return _built(kind, options, around)
    except LogbrokerError as error:
        raise PipelineError(f"step {number}: {error}", step=number) from None


def _built(kind: str, options: StepOptions, around: _Surroundings) -> BuiltStep:
    cls = type(options)
    return BuiltStep(
        kind,
        options.build(around),
        cls.sees_tombstones,
        cls.takes,
        cls.leaves,
        step_table(kind, options),
    )


def _installed_step(table: Mapping[str, Any]) -> BuiltStep:
    """A step whose kind is the name of an entry point; all else in its table are the function's arguments."""
    kind, options = kind_of(table)
    if kind not in {point.name for point in entry_points(group=STEPS_GROUP)}:
        parse_step(table)  # says which kinds there are
    function = _entry_point(STEPS_GROUP, kind, "step")
    if not callable(function):
        raise PipelineError(f"the step {kind!r} is a {type(function).__name__}, and cannot be called")
    return BuiltStep(kind, python_step(function, options), True, Form.ANY, Form.ANY, dict(table))


# What is installed ----------------------------------------------------------------------------------------


def _from_entry_point(name: str, clock: Clock) -> Pipeline:
    found = _entry_point(PIPELINES_GROUP, name, "pipeline")
    source = f"entry_point = {tomli_w.dumps({'x': name})[4:].strip()}\n"
    if callable(found) and not isinstance(found, Pipeline):
        return FunctionPipeline(name, found, source)
    if isinstance(found, str) and found == name:
        raise PipelineError(f"the entry point {name!r} of {PIPELINES_GROUP} is its own name")
    pipeline = load_pipeline(found, clock=clock)
    pipeline.source = source
    return pipeline


def _entry_point(group: str, name: str, what: str) -> Any:
    points = entry_points(group=group)
    matching = [point for point in points if point.name == name]
    if not matching:
        known = ", ".join(sorted(point.name for point in points)) or "none"
        raise PipelineError(
            f"no installed package has a {what} {name!r} (entry points of {group}: {known}); "
            "a file's name ends with .toml"
        )
    try:
        return matching[0].load()
    except Exception as error:
        raise PipelineError(f"the {what} {name!r} cannot be imported: {named(error)}") from error


class _Surroundings:
    """Files relative to a directory, and Python's modules."""

    def __init__(self, directory: str, clock: Clock) -> None:
        self.clock = clock
        self._directory = directory

    def read_file(self, name: str) -> bytes:
        path = os.path.join(self._directory, name)
        try:
            with open(path, "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            raise PipelineError(
                f"{name!r} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        if len(content) > MAX_FILE_BYTES:
            raise PipelineError(f"{name!r} is larger than {MAX_FILE_BYTES} bytes")
        return content

    def load_function(self, name: str) -> Callable[..., object]:
        module_name, _, attribute = name.partition(":")
        if not module_name or not attribute:
            raise PipelineError(f'{name!r} names no function; write "module:function"')
        try:
            found: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise PipelineError(f"{name!r} cannot be imported: {named(error)}") from error
        if not callable(found):
            raise PipelineError(f"{name!r} is a {type(found).__name__}, and cannot be called")
        return found  # type: ignore[no-any-return]
