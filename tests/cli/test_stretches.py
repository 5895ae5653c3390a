"""Which partition and sequence a line has under a producer's name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbroker.cli.exit_codes import CommandFailed
from logbroker.cli.ingest import LINES_PER_STRETCH, check_placement, partition_of_line, stretches


@given(
    st.integers(0, 5000),
    st.lists(st.integers(0, 2500), max_size=4),
    st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
)
def test_a_lines_partition_depends_on_nothing_but_its_number(
    first: int, sizes: list[int], partitions: list[int]
) -> None:
    line = first
    for size in sizes:
        lines = [b"%d" % number for number in range(line, line + size)]
        placed = []
        for stretch in stretches(line, lines, partitions):
            for number, content in enumerate(stretch.lines, stretch.first_line):
                assert content == b"%d" % number
                assert stretch.partition == partition_of_line(number, partitions)
                placed.append(number)
        assert placed == list(range(line, line + size))
        line += size


def test_a_line_that_would_go_elsewhere_now_is_noticed() -> None:
    check_placement("loader", {0: -1, 1: LINES_PER_STRETCH}, [0, 1])
    with pytest.raises(CommandFailed, match="wrote line 1001 to partition 0, where it would not go now"):
        check_placement("loader", {0: LINES_PER_STRETCH, 1: -1}, [0, 1])
