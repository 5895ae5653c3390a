"""Expressions over a record, in CEL (the Common Expression Language): for filters, routes and transformations.

    name        is
    key         the key: text if it is UTF-8, else bytes, or null
    value       the value, likewise
    json        the value parsed as JSON; null for a tombstone. Where it is no JSON, using it is an error
    headers     a map of the headers to text or bytes; of several with one key, the last
    topic       text
    partition   int
    offset      int
    timestamp   a CEL timestamp

An expression is checked and compiled once. Names that do not exist, functions that do not exist and syntax
errors are found then; wrong types are found at a record, and are an ``ExpressionError`` there.

The engine is native code that recurses on the C stack, so whatever could make it recurse too far is bounded
before: an expression by ``text``, the data by ``nesting``.

Only what an expression uses is built: of the variables those it names, of ``json`` those fields, where they are
named (``json.customer.name``). Comparing the key takes 1.5 µs, a field of JSON 6 µs
(``benchmarks/test_transforms.py``).
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from logbroker_storage.errors import InvalidRequestError, LogbrokerError
from logbroker_storage.record import Record

from ..nesting import MAX_DEPTH, is_too_deep
from .json_fields import Fields, fields_of, json_reader, pick
from .text import COMPREHENSIONS, Shape, invalid_expression, shape_of, shortened

NAMES = ("key", "value", "json", "headers", "topic", "partition", "offset", "timestamp")

MAX_REPLACED_CHARACTERS = 16 << 20

# Of the engine itself:
_FUNCTION_NAMES = (
    "size contains startsWith endsWith matches int uint double string bytes timestamp duration type dyn has "
    "getFullYear getMonth getDayOfYear getDayOfMonth getDate getDayOfWeek getHours getMinutes getSeconds "
    "getMilliseconds"
)
FUNCTIONS = frozenset(_FUNCTION_NAMES.split()) | COMPREHENSIONS
TYPE_NAMES = frozenset(  # as type() gives them
    ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type"]
)
# Functions that we add, from the engine's optional libraries:
EXTENSION_LIBRARIES = ("core", "encoders", "lists", "math", "sets", "strings")
LEFT_OUT = frozenset(["contains", "lists.range"])  # the engine's own is better; makes a list of any length

Predicate = Callable[[Record], bool]


class ExpressionError(LogbrokerError):
    """An expression has no value for a record: a missing field, a wrong type, no JSON.

    Attributes:
        expression: its text.
        reason: what is wrong.
        topic, partition, offset: the record's place; None where it was not evaluated for a record.
    """

    def __init__(self, expression: str, reason: str, record: Record | None = None) -> None:
        self.expression = expression
        self.reason = reason
        self.topic = None if record is None else record.topic
        self.partition = None if record is None else record.partition
        self.offset = None if record is None else record.offset
        place = "" if record is None else f" for {record.topic}-{record.partition} at offset {record.offset}"
        super().__init__(f"expression {shortened(expression)!r} has no value{place}: {reason}")


# An expression ------------------------------------------------------------------------------------------


class Expression:
    """A compiled expression; ``compile_expression`` makes one. Safe across threads.

    Attributes:
        text: as it was written.
        names: the variables that it uses.
    """

    __slots__ = (
        "_builders",
        "_fields",
        "_functions",
        "_program",
        "_read_json",
        "_uses_json",
        "names",
        "text",
    )

    def __init__(
        self,
        text: str,
        program: Any,
        names: Iterable[str],
        functions: Mapping[str, Any],
        json_fields: Fields | None,
    ) -> None:
        """Use ``compile_expression``."""
        self.text = text
        self._fields = json_fields
        self._read_json = json_reader(json_fields)
        self.names = frozenset(names)
        self._program = program
        self._functions = dict(functions)
        self._builders = [(name, _BUILDERS[name]) for name in NAMES if name in self.names and name != "json"]
        self._uses_json = "json" in self.names

    def __repr__(self) -> str:
        return f"<Expression {self.text!r}>"

    def matches(self, record: Record) -> bool:
        """Whether it is true of *record*.

        Raises:
            ExpressionError: it cannot be evaluated, or its value is no bool.
        """
        result = self.evaluate(record)
        if result is True or result is False:
            return result
        raise ExpressionError(
            self.text,
            f"a condition is true or false, not {type(result).__name__} {shortened(repr(result))}",
            record,
        )

    def evaluate(self, record: Record) -> object:
        """Its value for *record*: None, bool, int, float, text, bytes, list, dict, datetime or timedelta.

        The fields of a dict are sorted by name.

        Raises:
            ExpressionError: it cannot be evaluated.
        """
        variables = self._functions.copy()
        for name, build in self._builders:
            variables[name] = build(record)
        no_json = self.add_json(variables, record.value) if self._uses_json else ""
        return self.evaluate_with(variables, record, no_json=no_json)

    def variables(self) -> dict[str, object]:
        """What ``evaluate_with`` takes: the functions that it uses; add the variables in ``names``."""
        return self._functions.copy()

    def add_json(self, variables: dict[str, object], value: bytes | None) -> str:
        """Set ``json`` from a value that is JSON, or say why there is none.

        An expression that decides without it need not fail.
        """
        if value is None:
            return self.add_document(variables, None)
        try:
            document = self._read_json(value)
        except (ValueError, RecursionError) as error:
            return f"the value is not JSON: {error}"
        return self._add(variables, document)

    def add_document(self, variables: dict[str, object], document: Any) -> str:
        """Set ``json`` to a decoded value, or say why it cannot be."""
        return self._add(variables, document if self._fields is None else pick(document, self._fields))

    @staticmethod
    def _add(variables: dict[str, object], document: Any) -> str:
        if is_too_deep(document):
            return f"the value is nested deeper than {MAX_DEPTH} levels"
        variables["json"] = document
        return ""

    def evaluate_with(
        self, variables: dict[str, object], record: Record | None = None, *, no_json: str = ""
    ) -> object:
        """Its value for other *variables* than a record's; *record* is only where they come from.

        Args:
            variables: from ``variables()``, with a value for each name.
            record: whose place an error tells.
            no_json: why ``json`` has no value, where it has none.

        Raises:
            ExpressionError: it cannot be evaluated.
        """
        try:
            result: object = self._program.execute(variables)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001  (a panic of the engine is no Exception)
            raise ExpressionError(self.text, _reason(error, no_json), record) from None
        return _sorted(result) if type(result) in _UNORDERED else result


_UNORDERED = (dict, list)


def _sorted(value: Any) -> Any:
    """With the fields of its maps in the order of their names; the engine's is another in every process."""
    if type(value) is dict:
        names = sorted(value, key=lambda name: (type(name).__name__, name))
        return {name: _sorted(value[name]) for name in names}
    return [_sorted(inner) for inner in value] if type(value) is list else value


def compile_expression(text: str) -> Expression:
    """Check and compile *text*.

    Raises:
        InvalidRequestError: a syntax error (with its place), a name or function that does not exist, or more of
            anything than is allowed.
    """
    if not isinstance(text, str):
        raise InvalidRequestError(f"an expression is text, not {type(text).__name__}")
    shape = shape_of(text)
    engine = _engine()
    try:
        program = engine.compile(text)
        found = program.references()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001  (as above)
        raise invalid_expression(text, _syntax_error(str(error))) from None
    names = found["variables"]
    for name in names:
        if name not in NAMES and not (name in shape.bound or name in shape.namespaces or name in TYPE_NAMES):
            raise invalid_expression(text, _unknown("name", name, NAMES))
    functions = _functions_in(text, shape)
    fields = None if shape.json_paths is None else fields_of(shape.json_paths)
    return Expression(text, program, [name for name in names if name in NAMES], functions, fields)


def as_predicate(filter: str | Expression | Predicate) -> Predicate:  # noqa: A002  (as the option is called)
    """A filter as a function of a record, whether it is CEL or already a function.

    What is CEL raises ``ExpressionError`` for a record that it cannot be evaluated for.

    Raises:
        InvalidRequestError: the expression cannot be compiled, or *filter* is none of them.
    """
    if isinstance(filter, str):
        filter = compile_expression(filter)  # noqa: A001  (as above)
    if isinstance(filter, Expression):
        return filter.matches
    if callable(filter):
        return filter
    raise InvalidRequestError(
        f"a filter is a CEL expression or a function of a record, not {type(filter).__name__}"
    )


# Variables ----------------------------------------------------------------------------------------------


def text_or_bytes(data: bytes | None) -> str | bytes | None:
    """*data* as text if it is UTF-8."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def header_map(pairs: Iterable[tuple[str, bytes | None]]) -> dict[str, str | bytes | None]:
    """Headers as expressions see them; a key that is not UTF-8 has its other bytes replaced."""
    return {
        key
        if key.isascii()
        else key.encode(errors="surrogateescape").decode(errors="replace"): text_or_bytes(value)
        for key, value in pairs
    }


_BUILDERS: dict[str, Callable[[Record], object]] = {
    "key": lambda record: text_or_bytes(record.key),
    "value": lambda record: text_or_bytes(record.value),
    "headers": lambda record: header_map(record.header_pairs),
    "topic": lambda record: record.topic,
    "partition": lambda record: record.partition,
    "offset": lambda record: record.offset,
    "timestamp": lambda record: record.timestamp,
}


# Errors -------------------------------------------------------------------------------------------------

_UNDEFINED = re.compile(r"Undefined variable or function: '([^']*)'")
_PLACE = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*)")


def _reason(error: BaseException, no_json: str) -> str:
    text = str(error).split("\n", 1)[0]
    if isinstance(error, KeyError):
        return f"there is no field {text}"
    if found := _UNDEFINED.match(text):
        if found[1] == "json":
            return no_json or "there is no json"
        return f"{found[1]} cannot be used on a value of this type"
    if not isinstance(error, Exception):
        return f"the expression engine failed: {text}"
    return shortened(text)


def _syntax_error(text: str) -> str:
    found = _PLACE.search(text)
    if found is None:
        return shortened(text)
    line, column, what = found.groups()
    what = what.removeprefix("Syntax error: ").split(" expecting {")[0]
    where = f"column {column}" if line == "1" else f"line {line}, column {column}"
    return f"{where}: {what.replace('<EOF>', 'the end')}"


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no {what} {name!r}{hint} There are: {', '.join(sorted(known))}".replace(
        "' There", "'. There"
    )


# The engine ---------------------------------------------------------------------------------------------


@functools.cache
def _engine() -> Any:
    """The library; it takes 0.1 s to import, for the command line that it brings."""
    import cel

    # What a function raises becomes an ExpressionError; the engine would also log it, for each record.
    logging.getLogger("cel").setLevel(logging.CRITICAL)
    return cel


@functools.cache
def _extensions() -> dict[str, Callable[..., object]]:
    """The functions that we add to the engine's own, by name."""
    from cel.stdlib import EXTENSIONS

    found: dict[str, Callable[..., object]] = {}
    for library in EXTENSION_LIBRARIES:
        found.update(EXTENSIONS[library])
    for name in LEFT_OUT:
        del found[name]
    found["replace"] = _replace
    return found


def _replace(text: str, old: str, new: str, limit: int = -1) -> str:
    """As cel-go's ``replace``; what a record makes of it is bounded."""
    count = text.count(old) if limit < 0 else min(limit, text.count(old))
    if len(text) + count * len(new) > MAX_REPLACED_CHARACTERS:
        raise ValueError(f"replace() would make a text of more than {MAX_REPLACED_CHARACTERS} characters")
    return text.replace(old, new, count)


def _functions_in(text: str, shape: Shape) -> dict[str, Callable[..., object]]:
    wanted = {name for name in shape.called if name not in FUNCTIONS}
    if not wanted:
        return {}
    extensions = _extensions()
    for name in sorted(wanted - extensions.keys()):
        raise invalid_expression(text, _unknown("function", name, FUNCTIONS | extensions.keys()))
    return {name: extensions[name] for name in wanted}
