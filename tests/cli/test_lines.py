"""Blocks into lines."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker.cli.lines import LineTooLong, lines_of


def lines(*blocks: bytes, max_line_bytes: int = 1 << 20) -> list[bytes]:
    source = iter([*blocks, b""])
    return list(chain.from_iterable(lines_of(lambda: next(source), max_line_bytes=max_line_bytes)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\n\nb", [b"a", b"", b"b"]),
        (b"a\r\nb\r", [b"a\r", b"b\r"]),
        (b"\0\n\xff\n", [b"\0", b"\xff"]),
    ],
)
def test_a_line_is_what_stands_before_a_newline_and_what_follows_the_last_one(
    content: bytes, expected: list[bytes]
) -> None:
    assert lines(*([content] if content else [])) == expected


@given(st.lists(st.text("ab\n", min_size=1).map(str.encode)))
def test_where_blocks_end_makes_no_difference(blocks: list[bytes]) -> None:
    whole = b"".join(blocks)
    assert lines(*blocks) == lines(*([whole] if whole else []))


@given(st.binary())
def test_lines_with_their_newlines_are_the_file_again(content: bytes) -> None:
    content += b"\n"
    assert b"".join(line + b"\n" for line in lines(content)) == content


def test_a_line_without_an_end_is_given_up_and_the_lines_before_it_are_not_lost() -> None:
    source = iter([b"first\nxx", b"xx", b"xx", b"xx\n", b""])
    given_out = lines_of(lambda: next(source), max_line_bytes=5)
    assert next(given_out) == [b"first"]
    with pytest.raises(LineTooLong):
        next(given_out)
    assert next(source) == b"xx\n", "it was not read further than needed"
