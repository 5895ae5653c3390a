"""CEL over a draft: the names are those of ``logbroker.expressions``, as the message is at that step.

``json`` is the decoded payload where there is one; ``value`` is then null. ``topic``, ``partition`` and
``offset`` are those of the record that came in.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..expressions import compile_expression, header_map, text_or_bytes
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
        no_json = ""
        if uses_json:
            add = expression.add_document if draft.is_decoded else expression.add_json
            no_json = add(variables, draft.payload)
        return expression.evaluate_with(variables, draft.record, no_json=no_json)

    return evaluate
