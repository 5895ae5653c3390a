"""For what no other step does: CEL, and JSONata for larger rearrangements."""

from __future__ import annotations

import re
import threading
from typing import Any

import msgspec

from logbroker_storage.errors import InvalidRequestError

from ...nesting import MAX_DEPTH, is_too_deep
from ..draft import Draft
from ..errors import StepFailed
from ..evaluation import evaluator
from ..options import Form, Step, StepOptions, Surroundings
from ..paths import parse_path, put

MAX_JSONATA_CHARACTERS = 65_536
JSONATA_STACK = 100  # calls in each other; the library's own walk takes some Python frames for each


class Cel(StepOptions, frozen=True):
    """Make the value, or a field of it, what a CEL expression says."""

    takes = Form.ANY

    expression: str
    field: str | None = None

    def build(self, around: Surroundings) -> Step:
        evaluate = evaluator(self.expression)
        path = None if self.field is None else parse_path(self.field)

        def cel(draft: Draft) -> Draft:
            result = evaluate(draft)
            if path is None:
                draft.payload, draft.is_decoded = result, True
            elif not draft.is_decoded:
                raise StepFailed("the value is still bytes, and has no fields; decode it before")
            else:
                put(draft.payload, path, result)
            return draft

        return cel


class Jsonata(StepOptions, frozen=True):
    """Make the value what a JSONata expression says; where it selects nothing, the message is dropped."""

    expression: str
    timeout_ms: int = 1000  # for one message

    def build(self, around: Surroundings) -> Step:
        compiled = _Compiled(self.expression, self.timeout_ms)

        def jsonata(draft: Draft) -> Draft | None:
            document = draft.payload
            if is_too_deep(document):
                raise StepFailed(f"the value is nested deeper than {MAX_DEPTH} levels")
            draft.payload = result = compiled.evaluate(document)
            return None if result is None else draft

        return jsonata


class _Compiled:
    """A JSONata expression. The library's objects are for one thread, so each thread compiles its own."""

    def __init__(self, text: str, timeout_ms: int) -> None:
        if len(text) > MAX_JSONATA_CHARACTERS:
            raise InvalidRequestError(f"a JSONata expression has at most {MAX_JSONATA_CHARACTERS} characters")
        if timeout_ms < 1:
            raise InvalidRequestError("timeout_ms is at least 1")
        self._text = text
        self._timeout_ms = timeout_ms
        self._of_thread = threading.local()
        self._library()

    def _library(self) -> Any:
        found = getattr(self._of_thread, "compiled", None)
        if found is None:
            import jsonata

            try:
                found = self._of_thread.compiled = jsonata.Jsonata(self._text)
            except Exception as error:  # noqa: BLE001  (of a text that is no JSONata, it raises what comes first)
                raise InvalidRequestError(f"the JSONata expression is wrong: {error}") from None
            if found.get_errors():
                raise InvalidRequestError(f"the JSONata expression is wrong: {found.get_errors()[0]}")
        return found

    def evaluate(self, document: Any) -> Any:
        compiled = self._library()
        # The library's clock and its count of calls run on from one evaluation to the next: begin anew.
        compiled.environment.set_runtime_bounds(self._timeout_ms, JSONATA_STACK)
        try:
            result = compiled.evaluate(document)
        except RecursionError:
            raise
        except Exception as error:  # noqa: BLE001  (whatever the expression makes of this value)
            raise StepFailed(f"JSONata: {_first_line(error)}") from None
        if is_too_deep(result):
            raise StepFailed(f"JSONata: the result is nested deeper than {MAX_DEPTH} levels")
        return _plain(result)


def _plain(value: Any) -> Any:
    """Without the library's own kinds of list; its depth is bounded."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, bytes, int, float)):
        return value
    try:
        return msgspec.to_builtins(value)
    except TypeError:
        raise StepFailed(f"JSONata: the result has a {type(value).__name__} in it") from None


def _first_line(error: Exception) -> str:
    return re.split(r"[\r\n]", str(error), maxsplit=1)[0] or type(error).__name__
