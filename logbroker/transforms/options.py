"""What every step's options have in common.

A kind of step is a struct: its fields are the options as they stand in TOML, its docstring's first line says
what it does, and ``build`` makes the function that does it. Of each kind it is known what form of payload it
takes and leaves, so a pipeline that forgets to decode is refused before it sees a message.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import ClassVar, Protocol

import msgspec

from logbroker_storage.clock import Clock

from .draft import Draft

MAX_TIMESTAMP_MS = 253_402_300_799_999  # the end of the year 9999

Result = Draft | list[Draft] | None
Step = Callable[[Draft], Result]


class Form(enum.Enum):
    """Of a payload."""

    BYTES = "bytes"
    DECODED = "a decoded value"
    ANY = "either"


class Surroundings(Protocol):
    """What a step may need of the world while it is built or runs."""

    clock: Clock

    def read_file(self, name: str) -> bytes:
        """The content of a file that the pipeline names.

        Raises:
            InvalidRequestError: it cannot be read.
        """

    def load_function(self, name: str) -> Callable[..., object]:
        """The Python object behind ``module:name``.

        Raises:
            InvalidRequestError: there is none, or it cannot be called.
        """


class StepOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all kinds."""

    takes: ClassVar[Form] = Form.DECODED
    leaves: ClassVar[Form | None] = Form.DECODED  # None: as it came
    sees_tombstones: ClassVar[bool] = False  # a record without a value passes the others as it is

    def build(self, around: Surroundings) -> Step:
        """The function that does it.

        Raises:
            InvalidRequestError: the options cannot be used.
        """
        raise NotImplementedError

    def with_files_inlined(self, around: Surroundings) -> StepOptions:  # noqa: ARG002  (for kinds that name files)
        """The same options, with the content of files in place of their names."""
        return self
