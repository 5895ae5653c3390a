"""Every typed error comes out of a copy and of another process as what it was."""

from __future__ import annotations

import copy
import errno
import importlib
import multiprocessing
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

import logbroker
import logbroker_storage
from logbroker.expressions import ExpressionError
from logbroker.request_reply.errors import NoRespondersError, RequestTimeoutError, ResponderError
from logbroker.request_reply.headers import Failure
from logbroker.server.error_codes import ErrorCode, RefusedError
from logbroker.transforms import PipelineError, TransformError
from logbroker.transforms.pipeline import Form, WrongFormError
from logbroker_storage import errors
from logbroker_storage.compression import DecompressedTooLargeError
from logbroker_storage.errors import FileSystemError, LogbrokerError, TopicNotFoundError, file_system_error

PLACE: Any = SimpleNamespace(topic="t", partition=1, offset=7)
STEP: Any = SimpleNamespace(kind="rename", takes=Form.DECODED)

# One of each kind that is not simply made of its message.
MADE: dict[type[LogbrokerError], Callable[[], LogbrokerError]] = {
    TopicNotFoundError: lambda: TopicNotFoundError("nope", partition=3, partitions=2, known=["t"]),
    errors.TopicExistsError: lambda: errors.TopicExistsError("t"),
    errors.BindingExistsError: lambda: errors.BindingExistsError("b"),
    errors.BindingNotFoundError: lambda: errors.BindingNotFoundError("b", known=["c"]),
    errors.RoutingLoopError: lambda: errors.RoutingLoopError("b", cycle=["t", "u", "t"], bindings=["a", "b"]),
    errors.InvalidConfigError: lambda: errors.InvalidConfigError("nope", "no key"),
    errors.RecordTooLargeError: lambda: errors.RecordTooLargeError("t", size_bytes=9, max_bytes=8),
    errors.OutOfOrderSequenceError: lambda: errors.OutOfOrderSequenceError(
        "t", 0, producer_id=1, expected=2, received=3
    ),
    errors.OffsetOutOfRangeError: lambda: errors.OffsetOutOfRangeError(
        "t", 0, offset=99, start_offset=1, end_offset=5
    ),
    errors.CorruptionError: lambda: errors.CorruptionError(
        "t", 0, start_offset=1, end_offset=2, path="p", position=3, reason="zeros"
    ),
    errors.SubscriptionNotFoundError: lambda: errors.SubscriptionNotFoundError("s", known=["r"]),
    errors.SubscriptionExistsError: lambda: errors.SubscriptionExistsError("s", what="group"),
    errors.LeaseLostError: lambda: errors.LeaseLostError([("t", 0, 1, 2)]),
    errors.ForkedError: lambda: errors.ForkedError("this consumer"),
    errors.MessageIdInUseError: lambda: errors.MessageIdInUseError("t", "id"),
    errors.CorruptBatchError: lambda: errors.CorruptBatchError(
        errors.BatchDefect.BAD_CRC, position=4, detail="x"
    ),
    DecompressedTooLargeError: lambda: DecompressedTooLargeError(5),
    NoRespondersError: lambda: NoRespondersError("t", near="u"),
    RequestTimeoutError: lambda: RequestTimeoutError("t", 1.5),
    ResponderError: lambda: ResponderError(
        "t", Failure(error="no", error_type="ValueError", traceback="line 1")
    ),
    ExpressionError: lambda: ExpressionError("value.x", "no such field", PLACE),
    TransformError: lambda: TransformError("2 rename", "no such field", PLACE),
    PipelineError: lambda: PipelineError("no such step", step=2),
    WrongFormError: lambda: WrongFormError(1, STEP, Form.BYTES),
    RefusedError: lambda: RefusedError(ErrorCode.invalid_request),
}


def every_kind() -> list[type[LogbrokerError]]:
    """The tree, with the branches that modules add."""
    for package in (logbroker, logbroker_storage):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".testing" not in module.name and ".cli" not in module.name:
                importlib.import_module(module.name)
    return [LogbrokerError, *_below(LogbrokerError)]


def _below(kind: type[LogbrokerError]) -> Iterator[type[LogbrokerError]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("logbroker"):
            yield child
        yield from _below(child)


def one_of(kind: type[LogbrokerError]) -> LogbrokerError:
    if kind in MADE:
        return MADE[kind]()
    if issubclass(kind, FileSystemError):
        return kind(errno.EACCES, "Permission denied", "/data")
    assert kind.__init__ in (Exception.__init__, errors.InvalidTopicError.__init__), "give MADE one of these"
    return kind("what to do")


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("carried", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_a_carried_error_is_what_it_was(kind, carried):
    error = one_of(kind)
    error.add_note("while the shop was closed")
    arrived = carried(error)
    assert type(arrived) is kind
    assert (str(arrived), repr(arrived), arrived.args) == (str(error), repr(error), error.args)
    assert vars(arrived) == vars(error)


def test_what_the_system_refused_keeps_its_file():
    arrived = pickle.loads(pickle.dumps(file_system_error(PermissionError(errno.EACCES, "denied", "/data"))))
    assert isinstance(arrived, PermissionError)
    assert (arrived.errno, arrived.strerror, arrived.filename) == (errno.EACCES, "denied", "/data")


def _seek_too_far() -> None:
    raise MADE[errors.OffsetOutOfRangeError]()


def test_a_worker_process_passes_the_error_on():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(
            errors.OffsetOutOfRangeError, match=r"offset 99 of t-0 is outside \[1, 5\]"
        ) as caught:
            pool.submit(_seek_too_far).result(60)
        assert caught.value.end_offset == 5
        assert pool.submit(len, "abc").result(60) == 3  # the pool lives on
