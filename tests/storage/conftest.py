"""The two record codecs, for the tests that run against both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from logbroker_storage import (
    record_decoding,
    record_encoding,
    record_loops,
    record_runs,
    record_survey,
    record_twin,
)

USERS = (record_decoding, record_encoding, record_survey)
LOOPS = {"one_length", "frame_each", "encode_each", "read_each", "skip_each", "survey_each"}


@pytest.fixture(scope="module", params=["python", "compiled"])
def codec_twin(request: pytest.FixtureRequest) -> Iterator[None]:
    """Records are encoded and decoded by the plain loops, or by their compiled twin."""
    is_compiled = request.param == "compiled"
    loops = record_loops
    if is_compiled:
        try:
            loops = record_twin.compiled_loops()
        except ImportError as error:
            pytest.skip(f"no compiled twin was built here: {error}")
    with pytest.MonkeyPatch.context() as patch:
        for user in USERS:
            for name in LOOPS & vars(user).keys():
                patch.setattr(user, name, getattr(loops, name))
        patch.setattr(record_survey, "IS_COMPILED", is_compiled)
        # As where these loops were chosen: the plain ones are slow enough for a look for runs to pay sooner.
        patch.setattr(record_decoding, "FEW_ALONE", 64 if is_compiled else 1)
        patch.setattr(record_runs, "MIN_BARE_RUN", 256 if is_compiled else record_runs.MIN_RUN)
        yield
