"""CloudEvents 1.0 in Kafka messages: wrap, convert, unwrap.

    mode         attributes                       data                          content-type
    binary       headers ``ce_id``, ``ce_type``…  the value                     the data's
    structured   in the value, a JSON object      in it: data or data_base64    application/cloudevents+json

Source: the CloudEvents specification 1.0.2, its Kafka protocol binding and its JSON event format.
"""

from __future__ import annotations

import datetime
import re
from typing import Any, Literal

import msgspec

from logbroker_storage.errors import InvalidRequestError

from ..draft import Draft
from ..errors import StepFailed
from ..evaluation import evaluator
from ..options import Form, Step, StepOptions, Surroundings
from ..values import as_text

Mode = Literal["binary", "structured"]

PREFIX = "ce_"
CONTENT_TYPE = "content-type"
STRUCTURED_TYPE = "application/cloudevents+json"
REQUIRED = ("specversion", "id", "source", "type")

_NAME = re.compile(r"[a-z0-9]{1,40}", re.ASCII)
_JSON_TYPE = re.compile(r"[^/;\s]+/(?:[^/;\s]+\+)?json\s*(?:;.*)?", re.ASCII | re.IGNORECASE)


class _Event(msgspec.Struct):
    """Its attributes, ``datacontenttype`` among them, and its data."""

    attributes: dict[str, str]
    data: bytes | None


# Reading and writing both modes --------------------------------------------------------------------------


def _content_type(draft: Draft) -> str | None:
    for name, value in draft.headers:
        if name.lower() == CONTENT_TYPE and value is not None:
            return value.decode("latin-1")
    return None


def _read(draft: Draft) -> _Event:
    content_type = _content_type(draft)
    if content_type is not None and content_type.lower().startswith("application/cloudevents"):
        if not content_type.lower().startswith(STRUCTURED_TYPE):
            raise StepFailed(f"an event as {content_type[:80]!r} is not read; only {STRUCTURED_TYPE}")
        event = _read_structured(draft.payload)
    else:
        attributes = {
            name[len(PREFIX) :]: _utf8(name, value)
            for name, value in draft.headers
            if name.startswith(PREFIX)
        }
        if content_type is not None:
            attributes["datacontenttype"] = content_type
        event = _Event(attributes, draft.payload)
    for name in REQUIRED:
        if not event.attributes.get(name):
            raise StepFailed(f"the message is no CloudEvent: it has no {name}")
    if event.attributes["specversion"] != "1.0":
        raise StepFailed(f"the CloudEvent is of version {event.attributes['specversion'][:20]!r}, not 1.0")
    return event


def _utf8(name: str, value: bytes | None) -> str:
    try:
        return (value or b"").decode()
    except UnicodeDecodeError:
        raise StepFailed(f"header {name} is not UTF-8") from None


def _read_structured(payload: Any) -> _Event:
    try:
        document = msgspec.json.decode(payload)
    except (ValueError, TypeError) as error:
        raise StepFailed(f"the CloudEvent is not JSON: {error}") from None
    if type(document) is not dict:
        raise StepFailed("the CloudEvent is no JSON object")
    data: bytes | None = None
    has_data, content = "data" in document, document.pop("data", None)
    encoded = document.pop("data_base64", None)
    attributes = {name: as_text(value) for name, value in document.items() if value is not None}
    if encoded is not None:
        if has_data:
            raise StepFailed("the CloudEvent has both data and data_base64")
        try:
            data = msgspec.convert(encoded, bytes)
        except msgspec.ValidationError as error:
            raise StepFailed(f"the CloudEvent's data_base64: {error}") from None
    elif has_data:
        is_text = isinstance(content, str) and not _is_json(attributes.get("datacontenttype"))
        data = content.encode() if is_text else msgspec.json.encode(content)
    return _Event(attributes, data)


def _is_json(content_type: str | None) -> bool:
    return content_type is None or _JSON_TYPE.fullmatch(content_type.strip()) is not None


def _write(draft: Draft, event: _Event, mode: Mode) -> Draft:
    headers = [
        (name, value)
        for name, value in draft.headers
        if not name.startswith(PREFIX) and name.lower() != CONTENT_TYPE
    ]
    if mode == "structured":
        headers.append((CONTENT_TYPE, f"{STRUCTURED_TYPE}; charset=UTF-8".encode()))
        draft.payload = _structured(event)
    else:
        for name, value in event.attributes.items():
            if name == "datacontenttype":
                headers.append((CONTENT_TYPE, value.encode()))
            else:
                headers.append((PREFIX + name, value.encode()))
        draft.payload = event.data
    draft.headers = tuple(headers)
    return draft


def _structured(event: _Event) -> bytes:
    document: dict[str, Any] = dict(event.attributes)
    if event.data is not None:
        content_type = event.attributes.get("datacontenttype")
        if _is_json(content_type):
            try:
                document["data"] = msgspec.json.decode(event.data)
            except ValueError as error:
                raise StepFailed(f"the data is said to be JSON, and is not: {error}") from None
        else:
            try:
                if not (content_type or "").lower().startswith("text/"):
                    raise UnicodeError
                document["data"] = event.data.decode()
            except UnicodeError:
                document["data_base64"] = event.data
    return msgspec.json.encode(document)


# Steps ----------------------------------------------------------------------------------------------------


class WrapCloudEvent(StepOptions, frozen=True):
    """Make a CloudEvent of the message: the value is its data."""

    takes = Form.BYTES
    leaves = Form.BYTES

    type: str
    source: str
    mode: Mode = "binary"
    id: str | None = None  # a constant; else topic-partition-offset of the record
    subject: str | None = None
    dataschema: str | None = None
    datacontenttype: str | None = None  # else the header content-type, or application/json
    extensions: dict[str, str] = {}
    expressions: dict[str, str] = {}  # attributes as CEL expressions, as id = "headers['request-id']"

    def build(self, around: Surroundings) -> Step:
        constants = {
            "specversion": "1.0",
            "type": self.type,
            "source": self.source,
            **{
                name: value
                for name in ("id", "subject", "dataschema")
                if (value := getattr(self, name)) is not None
            },
            **self.extensions,
        }
        for name in (*self.extensions, *self.expressions):
            if not _NAME.fullmatch(name) or name in ("data", "specversion", "datacontenttype"):
                raise InvalidRequestError(f"{name!r} cannot be an attribute's name; they are of a-z and 0-9")
        if not self.type or not self.source:
            raise InvalidRequestError("type and source cannot be empty")
        evaluators = [(name, evaluator(text)) for name, text in self.expressions.items()]
        mode, content_type = self.mode, self.datacontenttype

        def wrap(draft: Draft) -> Draft:
            record = draft.record
            attributes = {
                "id": f"{record.topic}-{record.partition}-{record.offset}",
                "time": _rfc3339(draft.timestamp_ms),
                **constants,
            }
            for name, evaluate in evaluators:
                attributes[name] = as_text(evaluate(draft))
            attributes["datacontenttype"] = content_type or _content_type(draft) or "application/json"
            return _write(draft, _Event(attributes, draft.payload), mode)

        return wrap


def _rfc3339(timestamp_ms: int) -> str:
    try:
        moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(
            milliseconds=timestamp_ms
        )
    except OverflowError:
        raise StepFailed(f"timestamp {timestamp_ms} ms is no time that an event can have") from None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class ConvertCloudEvent(StepOptions, frozen=True):
    """Put a CloudEvent of either mode into one."""

    takes = Form.BYTES
    leaves = Form.BYTES
    sees_tombstones = True  # a binary event may be without data

    to: Mode

    def build(self, around: Surroundings) -> Step:
        mode = self.to

        def convert(draft: Draft) -> Draft:
            return _write(draft, _read(draft), mode)

        return convert


class UnwrapCloudEvent(StepOptions, frozen=True):
    """Take the data out of a CloudEvent of either mode; its content type stays as a header."""

    takes = Form.BYTES
    leaves = Form.BYTES
    sees_tombstones = True

    def build(self, around: Surroundings) -> Step:
        def unwrap(draft: Draft) -> Draft:
            event = _read(draft)
            content_type = event.attributes.get("datacontenttype")
            kept = {} if content_type is None else {"datacontenttype": content_type}
            if draft.key is None and (partition_key := event.attributes.get("partitionkey")):
                draft.key = partition_key.encode()
            return _write(draft, _Event(kept, event.data), "binary")

        return unwrap
