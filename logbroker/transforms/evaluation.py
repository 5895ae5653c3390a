"""CEL over a draft: the names are those of ``logbroker.expressions``, as the message is at that step.

``json`` is the decoded payload where there is one; ``value`` is then null. ``topic``, ``partition`` and
``offset`` are those of the record that came in.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..expressions import compile_expression, header_map, text_or_bytes
from ..nesting import MAX_DEPTH, is_too_deep
from .draft import Draft

_VARIABLES: dict[str, Callable[[Draft], object]] = {
    "key": lambda draft: text_or_bytes(draft.key),
    "value": lambda draft: None if draft.is_decoded else text_or_bytes(draft.payload),
    "headers": lambda draft: header_map(draft.headers),
    "topic": lambda draft: draft.record.topic,
    "partition": lambda draft: draft.record.partition,
    "offset": lambda draft: draft.record.offset,
    "timestamp": lambda draft: (
        msgspec.structs.replace(draft.record, timestamp_ms=draft.timestamp_ms).timestamp
    ),
}

_decode_json = msgspec.json.Decoder().decode


def evaluator(text: str) -> Callable[[Draft], object]:
    """What evaluates the expression *text* for a draft.

    Raises:
        InvalidRequestError: it cannot be compiled.
    """
    expression = compile_expression(text)
    builders = [(name, _VARIABLES[name]) for name in sorted(expression.names) if name != "json"]
    uses_json = "json" in expression.names

    def evaluate(draft: Draft) -> object:
        variables = expression.variables()
        for name, build in builders:
            variables[name] = build(draft)
        no_json = _add_json(variables, draft) if uses_json else ""
        return expression.evaluate_with(variables, draft.record, no_json=no_json)

    return evaluate


def _add_json(variables: dict[str, object], draft: Draft) -> str:
    """Set ``json``, or say why there is none."""
    document = draft.payload
    if not draft.is_decoded and document is not None:
        try:
            document = _decode_json(document)
        except (ValueError, RecursionError) as error:
            return f"the value is not JSON: {error}"
    if is_too_deep(document):
        return f"the value is nested deeper than {MAX_DEPTH} levels"
    variables["json"] = document
    return ""
