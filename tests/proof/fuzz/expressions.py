"""Target: CEL expressions, compiled and evaluated, in a thread of a small stack.

An input is the text of an expression and, behind a NUL, the value of the record that it is evaluated for.
"""

from __future__ import annotations

import threading

from logbroker.errors import InvalidRequestError
from logbroker.expressions import ExpressionError, compile_expression
from logbroker_storage.record import Record

from .target import Target

STACK_BYTES = 512 << 10  # what ``expressions/text.py`` says is enough
VALUE = b'{"customer": {"name": "Ada", "age": 36}, "items": [1, 2.5, "x", null, true, {"a": []}]}'
HEADERS = (("kind", b"order"), ("raw", b"\xff"), ("none", None))


def try_expression(data: bytes) -> None:
    text, separator, value = data.partition(b"\0")
    records = [
        Record("orders", 1, 7, 1_700_000_000_000, b"alice", value if separator else VALUE, HEADERS),
        Record("orders", 0, 0, -1, None, None),
    ]
    expression = compile_expression(text.decode(errors="replace"))
    for record in records:
        try:
            expression.evaluate(record)
        except ExpressionError:
            pass  # a value of another type than the expression takes


def on_small_stack(data: bytes) -> None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            try_expression(data)
        except BaseException as error:
            raised.append(error)

    before = threading.stack_size(STACK_BYTES)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if raised:
        raise raised[0]


TARGETS = {"cel": Target(on_small_stack, (InvalidRequestError, ExpressionError))}
