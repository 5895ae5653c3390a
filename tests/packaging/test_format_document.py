"""The tables of docs/format.md are the layouts that the code uses."""

from __future__ import annotations

import importlib
import re
import struct
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
TABLE = re.compile(r"<!-- layout: (\S+)\.(\w+) -->\n\n\| at .*\n\|[-|]+\n((?:\|.*\n)+)")
CODES = {"int8": "b", "int16": "h", "int32": "i", "uint32": "I", "int64": "q"}


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
    assert len(TABLE.findall(TEXT)) == 5
