"""Bytes written as text: base64, base64url or hexadecimal. The value is bytes before and after."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Literal

from ..draft import Draft
from ..errors import StepFailed
from ..options import Form, Step, StepOptions, Surroundings

Encoding = Literal["base64", "base64url", "hex"]


def _from_base64url(text: bytes) -> bytes:
    padded = text.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(text) % 4)
    return base64.b64decode(padded, validate=True)


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "base64": lambda text: base64.b64decode(text, validate=True),
    "base64url": _from_base64url,  # with or without its padding
    "hex": binascii.unhexlify,
}
_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "base64": base64.b64encode,
    "base64url": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
    "hex": binascii.hexlify,
}


class DecodeBytes(StepOptions, frozen=True):
    """Turn base64 or hexadecimal text into the bytes that it stands for."""

    takes = Form.BYTES
    leaves = Form.BYTES

    encoding: Encoding = "base64"

    def build(self, around: Surroundings) -> Step:
        encoding, decode = self.encoding, _DECODERS[self.encoding]

        def decode_bytes(draft: Draft) -> Draft:
            try:
                draft.payload = decode(draft.payload.strip())
            except ValueError as error:
                raise StepFailed(f"the value is not {encoding}: {error}") from None
            return draft

        return decode_bytes


class EncodeBytes(StepOptions, frozen=True):
    """Write bytes as base64 or hexadecimal text."""

    takes = Form.BYTES
    leaves = Form.BYTES

    encoding: Encoding = "base64"

    def build(self, around: Surroundings) -> Step:
        encode = _ENCODERS[self.encoding]

        def encode_bytes(draft: Draft) -> Draft:
            draft.payload = encode(draft.payload)
            return draft

        return encode_bytes
