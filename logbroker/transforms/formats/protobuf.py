"""Protobuf, through the library of its makers, by a descriptor set.

``protoc --include_imports --descriptor_set_out=shop.binpb shop.proto`` makes one. Values are as in Protobuf's
JSON mapping: 64-bit integers are text, bytes are base64, timestamps are ISO 8601.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

from logbroker_storage.errors import InvalidRequestError

from ..draft import Draft
from ..errors import StepFailed
from ..options import Form, Step, StepOptions, Surroundings


class _ProtobufOptions(StepOptions, frozen=True):
    message: str  # its full name, as package.Message
    descriptor_set: str | None = None  # a file
    descriptor_set_base64: str | None = None  # its content

    def with_files_inlined(self, around: Surroundings) -> _ProtobufOptions:
        if self.descriptor_set is None:
            return self
        if self.descriptor_set_base64 is not None:
            raise InvalidRequestError("give one of descriptor_set and descriptor_set_base64")
        content = base64.b64encode(around.read_file(self.descriptor_set)).decode()
        return msgspec.structs.replace(self, descriptor_set=None, descriptor_set_base64=content)

    def message_class(self) -> tuple[type[Message], descriptor_pool.DescriptorPool]:
        """The class of the message, and where its relatives are.

        Raises:
            InvalidRequestError: the descriptor set is none, or has no such message.
        """
        if self.descriptor_set_base64 is None:
            raise InvalidRequestError(
                "give descriptor_set, the file that protoc --descriptor_set_out has made"
            )
        files, pool = descriptor_pb2.FileDescriptorSet(), descriptor_pool.DescriptorPool()
        try:
            files.ParseFromString(base64.b64decode(self.descriptor_set_base64, validate=True))
        except (binascii.Error, DecodeError) as error:
            raise InvalidRequestError(
                f"this is no descriptor set, as protoc --descriptor_set_out makes it: {error}"
            ) from None
        try:
            for file in files.file:
                pool.Add(file)
        except TypeError as error:
            raise InvalidRequestError(
                f"the descriptor set is not whole ({error}); make it with protoc --include_imports"
            ) from None
        try:
            return message_factory.GetMessageClass(pool.FindMessageTypeByName(self.message)), pool
        except KeyError:
            known = sorted(_names(files))
            raise InvalidRequestError(
                f"the descriptor set has no message {self.message!r}; it has {', '.join(known)[:500] or 'none'}"
            ) from None


def _names(files: Any) -> list[str]:
    return [
        f"{file.package}.{message.name}".lstrip(".") for file in files.file for message in file.message_type
    ]


class DecodeProtobuf(_ProtobufOptions, frozen=True):
    """Parse the value as a Protobuf message."""

    takes = Form.BYTES

    json_names: bool = False  # lowerCamelCase, instead of the names in the .proto file
    defaults: bool = False  # also the fields that are not set

    def build(self, around: Surroundings) -> Step:
        make, pool = self.message_class()
        proto_names, defaults, name = not self.json_names, self.defaults, self.message

        def decode_protobuf(draft: Draft) -> Draft:
            message = make()
            try:
                message.ParseFromString(draft.payload)
                draft.payload = json_format.MessageToDict(
                    message,
                    preserving_proto_field_name=proto_names,
                    always_print_fields_with_no_presence=defaults,
                    descriptor_pool=pool,
                )
            except (DecodeError, json_format.Error, ValueError, TypeError) as error:
                raise StepFailed(f"the value is no {name}: {error}") from None
            draft.is_decoded = True
            return draft

        return decode_protobuf


class EncodeProtobuf(_ProtobufOptions, frozen=True):
    """Write a map as a Protobuf message; its fields by either kind of name."""

    leaves = Form.BYTES

    unknown_fields: bool = False  # leave out fields that the message does not have, instead of failing

    def build(self, around: Surroundings) -> Step:
        make, pool = self.message_class()
        ignore, name = self.unknown_fields, self.message

        def encode_protobuf(draft: Draft) -> Draft:
            if type(draft.payload) is not dict:
                raise StepFailed(f"the value is a {type(draft.payload).__name__}, not a map of fields")
            try:
                fields = msgspec.to_builtins(draft.payload)  # times and bytes as text, as JSON has them
                message = json_format.ParseDict(
                    fields, make(), ignore_unknown_fields=ignore, descriptor_pool=pool
                )
                draft.payload = message.SerializeToString(deterministic=True)
            except (json_format.Error, ValueError, TypeError, AttributeError) as error:
                raise StepFailed(f"the value does not fit {name}: {error}") from None
            draft.is_decoded = False
            return draft

        return encode_protobuf
