"""A step in Python.

The function takes a ``Draft``, which it may change, and returns it, or other drafts (``draft.with_payload``),
or None to drop the message. What it raises is why the message cannot be transformed. A package can bring
steps under a name of their own, as entry points of the group ``logbroker.transform_steps``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ...records import stored_headers
from ..draft import Draft
from ..errors import StepFailed
from ..options import MAX_TIMESTAMP_MS, Form, Step, StepOptions, Surroundings


class Python(StepOptions, frozen=True):
    """Call a Python function with the draft of the message."""

    takes = Form.ANY
    leaves = Form.ANY
    sees_tombstones = True

    function: str  # module:name
    options: dict[str, Any] = {}  # its keyword arguments

    def build(self, around: Surroundings) -> Step:
        return python_step(around.load_function(self.function), self.options)


def _checked(draft: Draft) -> Draft:
    """A draft that came back from the user, with what he may have set wrongly looked at, and headers as pairs."""
    if draft.key is not None and type(draft.key) is not bytes:
        raise StepFailed(f"the function set the key to a {type(draft.key).__name__}; it is bytes or None")
    if type(draft.timestamp_ms) is not int or not 0 <= draft.timestamp_ms <= MAX_TIMESTAMP_MS:
        raise StepFailed(
            f"the function set timestamp_ms to {draft.timestamp_ms!r:.60}; it is milliseconds since 1970"
        )
    draft.headers = stored_headers(draft.headers)
    return draft


def python_step(function: Callable[..., object], options: dict[str, Any]) -> Step:
    """A function of the user's, its results checked."""
    call = partial(function, **options) if options else function

    def run(draft: Draft) -> Draft | list[Draft] | None:
        result = call(draft)
        if result is None:
            return None
        if isinstance(result, Draft):
            return _checked(result)
        if isinstance(result, Iterable) and not isinstance(result, (str, bytes, dict)):
            drafts = list(result)
            if all(isinstance(one, Draft) for one in drafts):
                return list(map(_checked, drafts))
        raise StepFailed(
            f"the function returned a {type(result).__name__}; it returns a Draft, several, or None"
        )

    return run
