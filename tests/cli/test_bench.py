"""``logbroker bench``."""

from __future__ import annotations

import pytest

import logbroker
from logbroker.cli.bench import SYNCED, _by_threads


def test_it_measures_the_disk_beside_the_data_and_leaves_nothing_there(cli):
    result = cli("bench", "--seconds", "0.1", "--json")
    assert result.code == 0
    works = {figure["work"] for figure in result.document}
    assert len(works) == len(result.document) == 4
    for figure in result.document:
        assert figure["records_per_s"] > 0
        assert figure["bare_records_per_s"] > 0
    assert not cli.data.exists()
    assert [entry for entry in cli.data.parent.iterdir() if "bench" in entry.name] == []


def test_on_a_pipe_each_figure_is_a_line_with_its_ratio(cli):
    rows = cli("bench", "--seconds", "0.1").rows
    for work, ours, bare, ratio in rows:
        assert work
        assert abs(int(ours) / int(bare) - float(ratio)) < 0.01


def test_a_disk_that_cannot_be_written_to_is_an_error_that_names_it(cli, tmp_path):
    result = cli.bare("bench", "--data", str(tmp_path / "missing" / "data"))
    assert result.code == 1
    assert "missing" in result.err


def test_what_fails_in_one_of_the_threads_is_raised_and_no_thread_goes_on(tmp_path):
    """Ctrl-C closed the producer under them, and each printed a traceback."""
    with logbroker.open(tmp_path / "data") as broker:
        broker.create_topic(SYNCED)
        with broker.producer() as producer:
            assert _by_threads(producer) == 256
        with pytest.raises(logbroker.ClosedError):
            _by_threads(producer)
