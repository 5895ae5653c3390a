"""The two record codecs, for the tests that run against both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from logbroker_storage import record_decoding, record_encoding, record_loops, record_twin


@pytest.fixture(scope="module", params=["python", "compiled"])
def codec_twin(request: pytest.FixtureRequest) -> Iterator[None]:
    """Records are encoded and decoded by the plain loops, or by their compiled twin."""
    loops = record_loops
    if request.param == "compiled":
        try:
            loops = record_twin.compiled_loops()
        except ImportError as error:
            pytest.skip(f"no compiled twin was built here: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_encoding, "encode_each", loops.encode_each)
        patch.setattr(record_decoding, "read_each", loops.read_each)
        yield
