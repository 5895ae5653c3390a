"""Expressions over a record, in CEL: for filters, routes and transformations. Pure.

expression    what can be named, compiled once, evaluated for each record
text          what the text of an expression shows without being parsed: its size, and what its names are
json_fields   of a JSON value only the fields that an expression asks for
"""

from __future__ import annotations

from .expression import (
    Expression,
    ExpressionError,
    Predicate,
    as_predicate,
    compile_expression,
    header_map,
    text_or_bytes,
)

__all__ = [
    "Expression",
    "ExpressionError",
    "Predicate",
    "as_predicate",
    "compile_expression",
    "header_map",
    "text_or_bytes",
]
