"""The examples in ``docs/transforms.md``: how they are written, and read.

```message          what comes in: lines of fields and an empty line, then the value; or the value alone
```toml             the pipeline; a toml block without a message before it is no example
```output           what comes out: messages as above, ``---`` between them, ``(nothing)`` for none
```python NAME.py   a module that the pipelines may name
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

from logbroker.records import Message, Record

DOCUMENT = Path(__file__).parents[2] / "docs" / "transforms.md"
NOTHING = "(nothing)"

_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$|^### ([^\n]*)$", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"(key|timestamp|value-hex|header ([^:]+)): ?(.*)")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Example:
    title: str  # of its section
    message: str
    pipeline: str
    output: str
    end: int  # of its output in the document, so that it can be filled in

    @property
    def record(self) -> Record:
        return parse_message(self.message, Record("orders", 1, 7, 1_767_225_600_000, None, None))

    @property
    def expected(self) -> list[Record]:
        if self.output.strip() == NOTHING:
            return []
        return [parse_message(part, self.record) for part in self.output.split("\n---\n")]


def read_examples(text: str) -> list[Example]:
    examples: list[Example] = []
    title = message = pipeline = ""
    for found in _BLOCK.finditer(text):
        language, body, heading = found.groups()
        if heading is not None:
            title = heading
        elif language == "message":
            message = body.removesuffix("\n")
        elif language == "toml":
            pipeline = body
        elif language == "output":
            assert message, f"an output without a message under {title!r}"
            examples.append(Example(title, message, pipeline, body.removesuffix("\n"), found.end() - 3))
            message = ""
    return examples


def read_modules(text: str) -> dict[str, str]:
    """Name and text of the Python modules in the document."""
    found = re.findall(r"^```python (\w+)\.py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return dict(found)


def parse_message(text: str, base: Record) -> Record:
    """The record that *text* says; what it does not say is *base*'s."""
    lines = text.split("\n")
    values: dict[str, object] = {}
    headers: list[tuple[str, bytes | None]] = []
    while lines and (field := _FIELD.fullmatch(lines[0])):
        name, header, value = field.groups()
        if header:
            headers.append((header, None if value == "(null)" else value.encode()))
        elif name == "key":
            values["key"] = None if value == "(null)" else value.encode()
        elif name == "timestamp":
            values["timestamp_ms"] = int(
                (datetime.datetime.fromisoformat(value) - _EPOCH).total_seconds() * 1000
            )
        else:
            values["value"] = bytes.fromhex(value)
        lines.pop(0)
    if lines and lines[0] == "" and (values or headers):
        lines.pop(0)
    if lines:
        values["value"] = "\n".join(lines).encode()
    if headers:
        values["header_pairs"] = () if headers == [("(none)", b"")] else tuple(headers)
    fields = {name: getattr(base, name) for name in Record.__struct_fields__}
    return Record(**(fields | values))  # type: ignore[arg-type]


def as_record(message: Message, base: Record) -> Record:
    """A message that came out, as a record to compare with."""
    return Record(
        base.topic,
        base.partition,
        base.offset,
        message.timestamp,  # type: ignore[arg-type]
        message.key,
        message.value,
        tuple(message.headers or ()),  # type: ignore[arg-type]
    )


def show(record: Record, base: Record) -> str:
    """*record* as an output is written, with what differs from *base*."""
    lines = []
    if record.key != base.key:
        lines.append(f"key: {'(null)' if record.key is None else record.key.decode()}")
    if record.timestamp_ms != base.timestamp_ms:
        lines.append(f"timestamp: {record.timestamp.isoformat().replace('+00:00', 'Z')}")
    if record.header_pairs != base.header_pairs:
        lines += [f"header {name}: {(value or b'').decode()}" for name, value in record.header_pairs] or [
            "header (none): "
        ]
    if record.value != base.value:
        value = record.value or b""
        try:
            text = value.decode()
            printable = text.replace("\n", "").isprintable()
        except UnicodeDecodeError:
            printable = False
        if printable:
            lines += ["", text] if lines else [text]
        else:
            lines.append(f"value-hex: {value.hex()}")
    return "\n".join(lines)
