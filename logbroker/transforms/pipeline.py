"""A pipeline: steps that make messages of a record.

``apply`` is pure: what comes out depends on the record alone (and on a clock or a function of the user's
where a step has one). A message keeps the record's key, headers and timestamp where no step changes them. A
time to live of the record's own goes on running: the message expires when the record would have, and is not
made at all if that is before its timestamp.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from logbroker_storage.errors import InvalidRequestError
from logbroker_storage.record_batch import RESERVED_HEADER_PREFIX
from logbroker_storage.record_expiry import NO_TTL, record_ttl_ms

from ..exception_text import named
from ..records import Message, Record, without_reserved_headers
from ..transform_outputs import Function, messages_of
from .draft import Draft
from .errors import StepFailed, TransformError
from .options import Form, Result, Step

MAX_MESSAGES = 100_000  # of one record
MAX_TTL_MS = datetime.timedelta.max // datetime.timedelta(milliseconds=1)
MAX_REASON_CHARACTERS = 1000  # what is raised may quote the whole value


class BuiltStep(NamedTuple):
    """A step as a pipeline has it."""

    kind: str
    run: Step
    sees_tombstones: bool
    takes: Form
    leaves: Form | None
    table: dict[str, Any]


class Pipeline:
    """What ``load_pipeline`` gives. Safe across threads.

    Attributes:
        name: for messages to the user.
        source: TOML that ``load_pipeline`` takes, whole in itself, to be stored; None for a Python function.
    """

    def __init__(self, name: str, steps: Sequence[BuiltStep], source: str | None) -> None:
        """Use ``load_pipeline``.

        Raises:
            InvalidRequestError: a step would be given what it cannot take, or the last leaves no bytes.
        """
        self.name = name
        self.source = source
        self._steps = list(steps)
        runs = _checked_forms(steps)
        self._run_steps = [(run, step.sees_tombstones) for run, step in zip(runs, steps, strict=True)]

    def __repr__(self) -> str:
        return f"<Pipeline {self.name!r}: {', '.join(step.kind for step in self._steps) or 'no steps'}>"

    def apply(self, record: Record) -> list[Message]:
        """The messages that *record* becomes; none where a step filters it out.

        Raises:
            TransformError: a step cannot be done for it.
        """
        headers = record.header_pairs
        expires_ms = -1
        if headers:
            ttl_ms = record_ttl_ms(record)
            if ttl_ms != NO_TTL and record.timestamp_ms >= 0:
                expires_ms = record.timestamp_ms + ttl_ms
            headers = tuple(pair for pair in headers if not pair[0].startswith(RESERVED_HEADER_PREFIX))
        draft = Draft(record.value, False, record.key, headers, record.timestamp_ms, record)
        drafts = self._run(draft, 0)
        if expires_ms >= 0:
            return [
                _message(draft, _duration(expires_ms - draft.timestamp_ms))
                for draft in drafts
                if draft.timestamp_ms < expires_ms
            ]
        return [_message(draft, None) for draft in drafts]

    def _run(self, draft: Draft, first: int) -> list[Draft]:
        """The drafts that come out behind the last step; *draft* goes in before the step *first*."""
        steps = self._run_steps
        number = first
        try:
            for number in range(first, len(steps)):
                run, sees_tombstones = steps[number]
                if draft.payload is None and not draft.is_decoded and not sees_tombstones:
                    continue
                result = run(draft)
                if result is None:
                    return []
                if type(result) is list:
                    return self._run_each(result, number + 1)
                draft = result  # type: ignore[assignment]
        except TransformError:
            raise
        except Exception as error:
            raise self._failed(number, error, draft.record) from error
        return [draft]

    def _run_each(self, drafts: list[Draft], first: int) -> list[Draft]:
        finished: list[Draft] = []
        for draft in drafts:
            finished += self._run(draft, first)
            if len(finished) > MAX_MESSAGES:
                raise StepFailed(f"more than {MAX_MESSAGES} messages of one record")
        return finished

    def _failed(self, number: int, error: Exception, record: Record) -> TransformError:
        return TransformError(f"{number + 1} {self._steps[number].kind}", reason_of(error), record)

    def describe(self) -> dict[str, Any]:
        """Name and steps, each with its number, kind and options; for a person or as JSON."""
        return {
            "name": self.name,
            "steps": [
                {"step": number, "kind": step.kind, "options": _options(step.table)}
                for number, step in enumerate(self._steps, 1)
            ],
        }


class FunctionPipeline(Pipeline):
    """A Python function as a pipeline of one step."""

    def __init__(self, name: str, function: Function, source: str | None) -> None:
        self._function = function
        step = BuiltStep("python", _never, True, Form.ANY, Form.BYTES, {"kind": "python", "function": name})
        super().__init__(name, [step], source)

    def apply(self, record: Record) -> list[Message]:
        try:
            record = without_reserved_headers(record)
            return messages_of(record, self._function(record))
        except Exception as error:
            raise self._failed(0, error, record) from error


def reason_of(error: Exception) -> str:
    """What went wrong, for the record's dead letter."""
    reason = _reason_of(error)
    return reason if len(reason) <= MAX_REASON_CHARACTERS else reason[: MAX_REASON_CHARACTERS - 1] + "…"


def _reason_of(error: Exception) -> str:
    if isinstance(error, StepFailed):
        return str(error)
    if isinstance(error, RecursionError):
        return "the value is nested too deep"
    reason = getattr(error, "reason", None)
    if isinstance(reason, str) and not isinstance(error, UnicodeError):
        return reason
    return named(error)


def _never(_: Draft) -> Draft:
    raise AssertionError("a function is applied to the record, not to a draft")


def _message(draft: Draft, ttl: datetime.timedelta | None) -> Message:
    payload = draft.payload
    if payload is not None and type(payload) is not bytes:
        # Only a step of the user's own, whose form nobody knows, can leave this behind.
        reason = f"the value is a {type(payload).__name__} in the end, not bytes; add an encode step"
        raise TransformError("end", reason, draft.record)
    timestamp_ms = draft.timestamp_ms if draft.timestamp_ms >= 0 else None  # below 0: the record had none
    return Message(payload, draft.key, draft.headers or None, None, timestamp_ms, ttl)


def _duration(milliseconds: int) -> datetime.timedelta:
    """A time to live; what is longer than Python knows is cut to that, which is 2.7 million years."""
    return datetime.timedelta(milliseconds=min(milliseconds, MAX_TTL_MS))


def _checked_forms(steps: Iterable[BuiltStep]) -> list[Step]:
    """What runs each step, once it is known that it will be given what it takes.

    Behind a step of the user's own it is not known, and looked at for each draft.
    """
    form = Form.BYTES
    number = 0
    runs = []
    for number, step in enumerate(steps, 1):
        run = step.run
        if step.takes is not Form.ANY:
            if form is Form.ANY:
                run = _looking(run, step.takes)
            elif form is not step.takes:
                raise WrongFormError(number, step, form)
        runs.append(run)
        if step.leaves is not None:
            form = step.leaves
        elif step.takes is not Form.ANY:
            form = step.takes
    if form is Form.DECODED:
        raise InvalidRequestError(
            f'after step {number} the value is still decoded; put a step with kind = "encode" behind it'
        )
    return runs


def _looking(run: Step, form: Form) -> Step:
    def look_and_run(draft: Draft) -> Result:
        if draft.is_decoded is not (form is Form.DECODED):
            raise StepFailed(
                f"it takes {form.value}, and the value is {'' if draft.is_decoded else 'not '}decoded"
            )
        return run(draft)

    return look_and_run


class WrongFormError(InvalidRequestError):
    """A step would be given bytes where it takes a decoded value, or the other way round."""

    def __init__(self, number: int, step: BuiltStep, form: Form) -> None:
        self.step = number
        coding = "decode" if form is Form.BYTES else "encode"
        super().__init__(
            f"step {number}: {step.kind} takes {step.takes.value}, and here the value is {form.value}; "
            f'put a step with kind = "{coding}" before it'
        )


def _options(table: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in ("kind", "format")}
