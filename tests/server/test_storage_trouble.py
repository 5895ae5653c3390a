"""What the storage refuses clients is in the server's log, and does not fill it."""

from __future__ import annotations

import pytest
from kio.schema.errors import ErrorCode

from logbroker.server.error_codes import RefusedError, code_of, trouble
from logbroker.server.storage_trouble import PAUSE_S, StorageTrouble
from logbroker_storage.errors import CorruptionError, StorageFailedError, TopicNotFoundError, WriteFailedError


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_each_kind_of_error_is_told_at_once_and_then_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    told = StorageTrouble(clock)
    told.tell(WriteFailedError("the disk is full"))
    told.tell(StorageFailedError("a sync failed"))
    assert lines(caplog) == ["a client is refused: the disk is full", "a client is refused: a sync failed"]
    for _ in range(5):
        told.tell(WriteFailedError("the disk is full"))
    assert lines(caplog) == []
    clock.now_s += PAUSE_S
    told.tell(WriteFailedError("the disk is full"))
    assert lines(caplog) == [
        "a client is refused: the disk is full (and 5 more of its kind since the last such line)"
    ]


def test_what_is_the_clients_own_doing_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    told = StorageTrouble()
    told.tell(TopicNotFoundError("t"))
    told.tell(RefusedError(ErrorCode.invalid_record))
    assert lines(caplog) == []


def test_a_code_for_a_client_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trouble, "_told_s", {})
    damaged = CorruptionError(
        "t", 0, start_offset=5, end_offset=7, path="a.log", position=9, reason="flipped"
    )
    assert code_of(damaged) is ErrorCode.corrupt_message
    assert lines(caplog) == [f"a client is refused: {damaged}"]
