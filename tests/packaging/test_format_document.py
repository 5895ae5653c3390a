"""The tables of docs/format.md are the layouts that the code uses."""

from __future__ import annotations

import importlib
import re
import struct
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from logbroker_storage import checkpoints
from logbroker_storage.events import AnyEvent, Event

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
TABLE = re.compile(r"<!-- layout: (\S+)\.(\w+) -->\n\n\| at .*\n\|[-|]+\n((?:\|.*\n)+)")
CODES = {"int8": "b", "int16": "h", "int32": "i", "uint32": "I", "int64": "q", "char[8]": "8s"}
EVENT_ROW = re.compile(r"^\| `([\w-]+)`([^|]*) \| ([\w, ]+) \| [^|]*\|$", re.MULTILINE)


@pytest.mark.parametrize(("module", "name", "rows"), TABLE.findall(TEXT))
def test_a_table_has_the_types_and_positions_of_its_struct(module: str, name: str, rows: str) -> None:
    layout: struct.Struct = getattr(importlib.import_module(module), name)
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows.splitlines()]
    assert ">" + "".join(CODES[cell[3]] for cell in cells) == layout.format
    position = 0
    for at, size, *_ in cells:
        assert int(at) == position
        position += int(size)
    assert position == layout.size


def test_every_layout_has_its_table() -> None:
    assert len(TABLE.findall(TEXT)) == 10


def test_the_journal_table_has_every_event_with_its_fields() -> None:
    events: tuple[type[Event], ...] = get_args(AnyEvent)
    made = {event.KIND: [field.name for field in msgspec.structs.fields(event)] for event in events}
    assert {kind: fields.split(", ") for kind, _, fields in EVENT_ROW.findall(TEXT)} == made


def test_the_text_files_are_as_described() -> None:
    written = {
        "leader-epoch-checkpoint": checkpoints.encode_leader_epochs([checkpoints.EpochStart(0, 0)]),
        "recovery-point-offset-checkpoint": checkpoints.encode_partition_offsets(
            [checkpoints.PartitionOffset("t", 0, 7)]
        ),
        "partition.metadata": checkpoints.encode_partition_metadata(bytes(16)),
    }
    assert written == {
        "leader-epoch-checkpoint": b"0\n1\n0 0\n",
        "recovery-point-offset-checkpoint": b"0\n2\nt 0 7\n__checksum 0 995045038\n",
        "partition.metadata": b"version: 0\ntopic_id: AAAAAAAAAAAAAAAAAAAAAA",
    }
    assert all(f"| `{name}` |" in TEXT for name in written)
