"""MessagePack, through msgspec."""

from __future__ import annotations

import msgspec

from ..draft import Draft
from ..errors import StepFailed
from ..options import Form, Step, StepOptions, Surroundings


class DecodeMessagePack(StepOptions, frozen=True):
    """Parse the value as MessagePack."""

    takes = Form.BYTES

    def build(self, around: Surroundings) -> Step:
        decode = msgspec.msgpack.Decoder().decode

        def decode_messagepack(draft: Draft) -> Draft:
            try:
                draft.payload = decode(draft.payload)
            except ValueError as error:
                raise StepFailed(f"the value is not MessagePack: {error}") from None
            draft.is_decoded = True
            return draft

        return decode_messagepack


class EncodeMessagePack(StepOptions, frozen=True):
    """Write the value as MessagePack."""

    leaves = Form.BYTES

    sort_keys: bool = False

    def build(self, around: Surroundings) -> Step:
        encode = msgspec.msgpack.Encoder(order="deterministic" if self.sort_keys else None).encode

        def encode_messagepack(draft: Draft) -> Draft:
            try:
                draft.payload = encode(draft.payload)
            except (TypeError, ValueError, OverflowError) as error:
                raise StepFailed(f"the value cannot be written as MessagePack: {error}") from None
            draft.is_decoded = False
            return draft

        return encode_messagepack
