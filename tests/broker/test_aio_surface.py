"""Each asyncio twin has what its blocking original has: names, parameters, defaults, types.

What would block is a coroutine, the rest is not. What is missing, more or different has its reason here.
"""

from __future__ import annotations

import ast
import collections.abc
import dis
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import logbroker
from logbroker import aio, aio_queue, aio_requests, broker
from logbroker.queues import message
from logbroker.request_reply import messages, responder


class Pair(NamedTuple):
    """A class and its twin."""

    blocking: type
    awaited: type
    engine: str = ""  # public in Python's sense only: other parts of the broker call them
    not_twins: str = ""  # what takes the place of something else
    plain: str = ""  # what blocks nobody


PAIRS = {
    "broker": Pair(
        broker.Broker,
        aio.AsyncBroker,
        plain="producer consumer queue transaction responder",  # opened when they are entered or used
    ),
    "producer": Pair(logbroker.Producer, aio.AsyncProducer),
    "consumer": Pair(
        logbroker.Consumer,
        aio.AsyncConsumer,
        engine="tend pending_commit uncommitted_places leave_commits_to_transactions return_to_committed "
        "return_to_stored committed_in keep_ttl_headers",
        plain="wakeup",
    ),
    "queue": Pair(
        logbroker.Queue,
        logbroker.AsyncQueue,
        engine="pending_acceptance lease_ms owner",
        plain="wakeup receive",  # what receive returns is awaited, or entered with async with
    ),
    "message": Pair(
        message.QueueMessage, aio_queue.AsyncQueueMessage, engine="queue_partition", not_twins="blocking"
    ),
    "batch": Pair(message.MessageBatch, aio_queue.AsyncMessageBatch),
    "transaction": Pair(
        logbroker.Transaction,
        logbroker.AsyncTransaction,
        engine="commit_with cut_off leave",
        not_twins="state get put items",  # the store is read and written by coroutines of the transaction itself
    ),
    "responder": Pair(
        responder.Responder,
        aio_requests.AsyncResponder,
        engine="subscription is_closed",
    ),
}

# Cancelling the task takes the place of an event to set.
MISSING_PARAMETERS = {"transform": {"stop"}, "run_router": {"stop"}}

# What aliases name as text.
IN_ALIASES = {"Request": messages.Request, "Answer": messages.Answer, "Pipeline": logbroker.Pipeline}


def decorator() -> Callable[[aio_requests.AsyncFunction], aio_requests.AsyncResponder]: ...


# What a coroutine's result is, where it is not its original's.
TWIN_OF: dict[Any, Any] = {pair.blocking: pair.awaited for pair in PAIRS.values()} | {
    logbroker.Receipt: logbroker.RecordMetadata,  # the acknowledgement is what is awaited
    Iterator[logbroker.DeadLetter]: list[logbroker.DeadLetter],
    Callable[[responder.Function], responder.Responder]: typing.get_type_hints(decorator, None, IN_ALIASES)[
        "return"
    ],
    (message.QueueMessage, "receive"): aio_queue.Receiving,
}

SPECIAL = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__"}


@pytest.fixture(params=PAIRS)
def pair(request) -> Pair:
    return PAIRS[request.param]


def public(members: typing.Iterable[str]) -> set[str]:
    return {name for name in members if not name.startswith("_")} - set(dir(list))


def own_names(kind: type) -> set[str]:
    """The public names of a class, and of the attributes that it sets when it is made."""
    makers = [vars(base).get("__init__") for base in kind.__mro__]
    made = (dis.get_instructions(maker) for maker in makers if inspect.isfunction(maker))
    return public(dir(kind)) | public(
        step.argval for steps in made for step in steps if step.opname == "STORE_ATTR"
    )


def twins(pair: Pair) -> dict[str, tuple[Any, Any]]:
    names = public(dir(pair.blocking)) & public(dir(pair.awaited))
    return {
        name: (inspect.getattr_static(pair.blocking, name), inspect.getattr_static(pair.awaited, name))
        for name in sorted(names)
        if inspect.isfunction(getattr(pair.blocking, name))
    }


@functools.cache
def names_of(module_name: str) -> dict[str, Any]:
    """What annotations in a module mean, also what it imports for type checkers only."""
    module = importlib.import_module(module_name)
    imports = [
        node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)
    ]
    names = {}
    for node in imports:
        home = importlib.import_module("." * node.level + (node.module or ""), module.__package__)
        names |= {name.asname or name.name: getattr(home, name.name, None) for name in node.names}
    return names | vars(module)


def types_of(function: Any) -> dict[str, Any]:
    return typing.get_type_hints(function, localns=names_of(function.__module__) | IN_ALIASES)


def test_nothing_of_the_blocking_one_is_missing_and_nothing_is_more(pair):
    reasoned = set(f"{pair.engine} {pair.not_twins}".split())
    assert own_names(pair.blocking) ^ own_names(pair.awaited) == reasoned


def test_blocks_and_iterations_have_twins(pair):
    for blocking, awaited in SPECIAL.items():
        if not issubclass(pair.blocking, list):
            assert hasattr(pair.blocking, blocking) == hasattr(pair.awaited, awaited), blocking


def test_properties_are_properties(pair):
    for name in public(dir(pair.blocking)) & public(dir(pair.awaited)):
        is_function = inspect.isfunction(getattr(pair.blocking, name))
        assert is_function == inspect.isfunction(getattr(pair.awaited, name)), name


def test_properties_have_the_same_types(pair):
    for name in public(dir(pair.blocking)) & public(dir(pair.awaited)):
        blocking, awaited = (inspect.getattr_static(kind, name) for kind in pair[:2])
        if isinstance(blocking, property) and isinstance(awaited, property):
            assert types_of(blocking.fget) == types_of(awaited.fget), name


def test_what_blocks_is_a_coroutine_and_the_rest_is_not(pair):
    found = {name for name, (_, awaited) in twins(pair).items() if not inspect.iscoroutinefunction(awaited)}
    assert found == set(pair.plain.split())


def test_parameters_have_the_same_names_order_and_defaults(pair):
    for name, (blocking, awaited) in twins(pair).items():
        wanted = [
            (parameter.name, parameter.kind, parameter.default)
            for parameter in inspect.signature(blocking).parameters.values()
            if parameter.name not in MISSING_PARAMETERS.get(name, ())
        ]
        found = [
            (parameter.name, parameter.kind, parameter.default)
            for parameter in inspect.signature(awaited).parameters.values()
        ]
        assert found == wanted, name


def test_parameters_and_results_have_the_same_types(pair):
    for name, (blocking, awaited) in twins(pair).items():
        wanted, found = types_of(blocking), types_of(awaited)
        for parameter in found.keys() - {"return"}:
            assert found[parameter] == twin_type(wanted[parameter]), (name, parameter)
        result = wanted["return"]
        assert found["return"] == TWIN_OF.get((result, name), TWIN_OF.get(result, result)), name


def twin_type(kind: Any) -> Any:
    """What a parameter's type is to the twin: messages and consumers are twins, too."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is collections.abc.Iterable:
        return collections.abc.Iterable[twin_type(arguments[0])]
    if arguments == (message.QueueMessage, str):
        return aio_queue.Settled
    return TWIN_OF.get(kind, kind)


def test_both_ways_to_open_a_directory_take_the_same():
    blocking = inspect.signature(logbroker.open).parameters
    awaited = inspect.signature(logbroker.open_async).parameters
    assert list(blocking) == list(awaited)
    assert [p.kind for p in blocking.values()] == [p.kind for p in awaited.values()]


@pytest.mark.parametrize("change", ["missing", "more", "a default", "a type", "a coroutine"])
def test_a_gap_is_found(change):
    class Blocking:
        def read(self, count: int = 1) -> int: ...

        def wait(self) -> None: ...

    class Awaited:
        async def read(self, count: int = 1) -> int: ...

        async def wait(self) -> None: ...

    async def other_default(self, count: int = 2) -> int: ...

    async def other_type(self, count: float = 1) -> int: ...

    def no_coroutine(self, count: int = 1) -> int: ...

    checks = [
        test_nothing_of_the_blocking_one_is_missing_and_nothing_is_more,
        test_what_blocks_is_a_coroutine_and_the_rest_is_not,
        test_parameters_have_the_same_names_order_and_defaults,
        test_parameters_and_results_have_the_same_types,
    ]
    pair = Pair(Blocking, Awaited)
    for check in checks:
        check(pair)
    match change:
        case "missing":
            del Awaited.wait
        case "more":
            Awaited.further = Awaited.wait
        case "a default":
            Awaited.read = other_default
        case "a type":
            Awaited.read = other_type
        case "a coroutine":
            Awaited.read = no_coroutine
    failed = 0
    for check in checks:
        try:
            check(pair)
        except AssertionError:
            failed += 1
    assert failed == 1
