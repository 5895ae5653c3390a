"""What goes wrong in a pipeline: with a message, or inside a step."""

from __future__ import annotations

from logbroker_storage.errors import LogbrokerError
from logbroker_storage.record import Record


class TransformError(LogbrokerError):
    """A step could not be done for a record.

    Attributes:
        step: the step's number, counted from 1, and its kind, for example ``"2 rename"``.
        reason: what is wrong.
        topic, partition, offset: the record's place.
    """

    def __init__(self, step: str, reason: str, record: Record) -> None:
        self.step = step
        self.reason = reason
        self.topic = record.topic
        self.partition = record.partition
        self.offset = record.offset
        super().__init__(
            f"step {step} cannot be done for {record.topic}-{record.partition} at offset {record.offset}: {reason}"
        )


class StepFailed(Exception):  # noqa: N818  (inside a pipeline only, which makes a TransformError of it)
    """A step cannot be done for this draft; the text is the reason."""
