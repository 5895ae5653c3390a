"""Every kind of step there is, by the name it has in TOML.

The modules are imported when a pipeline has a step of them: some need a library that takes a while to load.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection, Mapping
from typing import Any, get_args

import msgspec

from logbroker_storage.errors import InvalidRequestError

from .options import StepOptions

FORMATS = ("json", "messagepack", "avro", "protobuf", "csv", "text", "bytes")
CODINGS = ("decode", "encode")

_HOMES = {
    "decode json": ("formats.json", "DecodeJson"),
    "encode json": ("formats.json", "EncodeJson"),
    "decode messagepack": ("formats.messagepack", "DecodeMessagePack"),
    "encode messagepack": ("formats.messagepack", "EncodeMessagePack"),
    "decode avro": ("formats.avro", "DecodeAvro"),
    "encode avro": ("formats.avro", "EncodeAvro"),
    "decode protobuf": ("formats.protobuf", "DecodeProtobuf"),
    "encode protobuf": ("formats.protobuf", "EncodeProtobuf"),
    "decode csv": ("formats.csv", "DecodeCsv"),
    "encode csv": ("formats.csv", "EncodeCsv"),
    "decode text": ("formats.text", "DecodeText"),
    "encode text": ("formats.text", "EncodeText"),
    "decode bytes": ("formats.bytes", "DecodeBytes"),
    "encode bytes": ("formats.bytes", "EncodeBytes"),
    "select": ("steps.fields", "Select"),
    "rename": ("steps.fields", "Rename"),
    "drop": ("steps.fields", "Drop"),
    "mask": ("steps.contents", "Mask"),
    "insert": ("steps.contents", "Insert"),
    "cast": ("steps.contents", "Cast"),
    "flatten": ("steps.shapes", "Flatten"),
    "unflatten": ("steps.shapes", "Unflatten"),
    "split": ("steps.shapes", "Split"),
    "filter": ("steps.conditions", "Filter"),
    "set_key": ("steps.envelope", "SetKey"),
    "set_headers": ("steps.envelope", "SetHeaders"),
    "remove_headers": ("steps.envelope", "RemoveHeaders"),
    "timestamp": ("steps.envelope", "Timestamp"),
    "cel": ("steps.expressions", "Cel"),
    "jsonata": ("steps.expressions", "Jsonata"),
    "cloudevents_wrap": ("steps.cloudevents", "WrapCloudEvent"),
    "cloudevents_convert": ("steps.cloudevents", "ConvertCloudEvent"),
    "cloudevents_unwrap": ("steps.cloudevents", "UnwrapCloudEvent"),
    "python": ("steps.python", "Python"),
}

KINDS = tuple(_HOMES)


class StepKind(msgspec.Struct, frozen=True):
    """What ``logbroker transform steps`` says of a kind."""

    kind: str  # "decode json" is written kind = "decode", format = "json"
    summary: str
    options: list[StepOption]


class StepOption(msgspec.Struct, frozen=True):
    """One option of a kind; ``default`` is as it is written in TOML, None where it is required or has none."""

    name: str
    type: str
    required: bool
    default: Any = None


def options_of(kind: str) -> type[StepOptions]:
    """The class of a kind in ``KINDS``."""
    module, name = _HOMES[kind]
    found: type[StepOptions] = getattr(importlib.import_module(f".{module}", __package__), name)
    return found


def parse_step(table: Mapping[str, Any]) -> tuple[str, StepOptions]:
    """Kind and options of a ``[[step]]`` table that is one of ours.

    Raises:
        InvalidRequestError: there is no such kind, format or option, or a value of the wrong type.
    """
    kind, options = kind_of(table)
    if kind not in _HOMES:
        known = sorted({known.split()[0] for known in KINDS})
        raise InvalidRequestError(_unknown("kind of step", kind, known))
    options_type = options_of(kind)
    names = [field.encode_name for field in msgspec.structs.fields(options_type)]
    for name in options:
        if name not in names:
            raise InvalidRequestError(f"{kind}: {_unknown('option', name, names)}")
    try:
        return kind, msgspec.convert(options, options_type)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"{kind}: {error}") from None


def is_unknown_kind(table: Mapping[str, Any]) -> bool:
    """Whether a table's kind is none of ours, and may be an installed package's."""
    kind = table.get("kind")
    return isinstance(kind, str) and kind not in KINDS and kind not in CODINGS


def kind_of(table: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A table's kind, with the format if it has one, and the rest of it."""
    options = dict(table)
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise InvalidRequestError('a step has a kind, for example kind = "rename"')
    if kind not in CODINGS:
        return kind, options
    format = options.pop("format", None)  # noqa: A001  (as the option is called)
    if not isinstance(format, str):
        raise InvalidRequestError(f"{kind} has a format: one of {', '.join(FORMATS)}")
    if format not in FORMATS:
        raise InvalidRequestError(f"{kind}: {_unknown('format', format, FORMATS)}")
    return f"{kind} {format}", options


def step_table(kind: str, options: StepOptions) -> dict[str, Any]:
    """The ``[[step]]`` table of a step: what ``parse_step`` takes; options at their defaults are left out."""
    coding, _, format = kind.partition(" ")  # noqa: A001  (as above)
    table: dict[str, Any] = {"kind": coding}
    if format:
        table["format"] = format
    for field in msgspec.structs.fields(type(options)):
        value = getattr(options, field.name)
        if value not in (None, msgspec.UNSET) and (field.required or value != _default(field)):
            table[field.encode_name] = value
    return table


def describe_kinds() -> list[StepKind]:
    """All of them."""
    return [_describe(kind) for kind in KINDS]


def _describe(kind: str) -> StepKind:
    options_type = options_of(kind)
    summary = (options_type.__doc__ or "").split("\n", 1)[0]
    options = [
        StepOption(field.encode_name, _type_name(field.type), field.required, _default(field))
        for field in msgspec.structs.fields(options_type)
    ]
    return StepKind(kind, summary, options)


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return None if field.default in (msgspec.NODEFAULT, msgspec.UNSET) else field.default


_TYPE_NAMES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    dict: "table",
    list: "list",
}


def _type_name(annotation: Any) -> str:
    if annotation in _TYPE_NAMES:
        return _TYPE_NAMES[annotation]
    origin = getattr(annotation, "__origin__", None)
    if origin is list:
        return f"list of {_type_name(get_args(annotation)[0])}"
    if origin is dict:
        return "table"
    choices = [choice for choice in get_args(annotation) if choice is not type(None)]
    if choices and all(isinstance(choice, str) for choice in choices):
        return " | ".join(map(repr, choices))
    return " or ".join(dict.fromkeys(map(_type_name, choices))) or "any value"


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"there is no {what} {name!r}{hint} there are {', '.join(known) or 'none'}"
