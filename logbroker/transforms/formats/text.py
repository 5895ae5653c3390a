"""Text in any of Python's character encodings."""

from __future__ import annotations

import codecs
from typing import Literal

from logbroker_storage.errors import InvalidRequestError

from ..draft import Draft
from ..errors import StepFailed
from ..options import Form, Step, StepOptions, Surroundings

OnError = Literal["strict", "replace", "ignore"]


class DecodeText(StepOptions, frozen=True):
    """Read the value as text."""

    takes = Form.BYTES

    encoding: str = "utf-8"
    errors: OnError = "strict"  # what is not of the encoding: an error, replaced by U+FFFD, or left out

    def build(self, around: Surroundings) -> Step:
        check_encoding(self.encoding)
        encoding, errors = self.encoding, self.errors

        def decode_text(draft: Draft) -> Draft:
            try:
                draft.payload = draft.payload.decode(encoding, errors)
            except UnicodeError as error:
                raise StepFailed(f"the value is not {encoding}: {error}") from None
            draft.is_decoded = True
            return draft

        return decode_text


class EncodeText(StepOptions, frozen=True):
    """Write text in an encoding."""

    leaves = Form.BYTES

    encoding: str = "utf-8"
    errors: OnError = "strict"

    def build(self, around: Surroundings) -> Step:
        check_encoding(self.encoding)
        encoding, errors = self.encoding, self.errors

        def encode_text(draft: Draft) -> Draft:
            text = draft.payload
            if not isinstance(text, str):
                raise StepFailed(f"the value is a {type(text).__name__}, not text")
            try:
                draft.payload = text.encode(encoding, errors)
            except UnicodeError as error:
                raise StepFailed(f"the text cannot be written in {encoding}: {error}") from None
            draft.is_decoded = False
            return draft

        return encode_text


def check_encoding(encoding: str) -> None:
    """See that there is a character encoding of this name.

    Raises:
        InvalidRequestError: there is none.
    """
    try:
        codecs.lookup(encoding)
        "".encode(encoding)  # not all of Python's codecs are of text
    except (LookupError, ValueError) as error:
        raise InvalidRequestError(f"encoding {encoding!r} is not one of text: {error}") from None
