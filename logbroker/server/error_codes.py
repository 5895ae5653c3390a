"""Our errors as Kafka's codes. One table; the message goes along where the protocol has room for it.

Those of the storage are logged on the way (see ``storage_trouble``).
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.errors import (
    CorruptBatchError,
    CorruptionError,
    FencedError,
    FileSystemError,
    InvalidConfigError,
    InvalidPartitionCountError,
    InvalidRequestError,
    InvalidTopicError,
    LogbrokerError,
    OffsetOutOfRangeError,
    OutOfOrderSequenceError,
    RecordTooLargeError,
    StorageFailedError,
    SubscriptionNotFoundError,
    TopicExistsError,
    TopicNotFoundError,
    ViewError,
    WriteFailedError,
)

from ..topic_names import check_group_name
from .storage_trouble import StorageTrouble

trouble = StorageTrouble()  # of all servers of the process

_CODES: dict[type[LogbrokerError], ErrorCode] = {
    TopicNotFoundError: ErrorCode.unknown_topic_or_partition,
    TopicExistsError: ErrorCode.topic_already_exists,
    SubscriptionNotFoundError: ErrorCode.group_id_not_found,
    InvalidTopicError: ErrorCode.invalid_topic_exception,
    InvalidPartitionCountError: ErrorCode.invalid_partitions,
    InvalidConfigError: ErrorCode.invalid_config,
    InvalidRequestError: ErrorCode.invalid_request,
    RecordTooLargeError: ErrorCode.message_too_large,
    FencedError: ErrorCode.invalid_producer_epoch,
    OutOfOrderSequenceError: ErrorCode.out_of_order_sequence_number,
    OffsetOutOfRangeError: ErrorCode.offset_out_of_range,
    CorruptionError: ErrorCode.corrupt_message,
    CorruptBatchError: ErrorCode.corrupt_message,
    WriteFailedError: ErrorCode.kafka_storage_error,
    StorageFailedError: ErrorCode.kafka_storage_error,
    FileSystemError: ErrorCode.kafka_storage_error,
    ViewError: ErrorCode.kafka_storage_error,
}


class RefusedError(LogbrokerError):
    """A request, or a part of it, is answered with *code*."""

    def __init__(self, code: ErrorCode, message: str = "") -> None:
        self.code = code
        super().__init__(message or code.name)


def check_group_id(group_id: str) -> None:
    """That a group, of any kind, can have this name.

    Raises:
        RefusedError: it cannot.
    """
    try:
        check_group_name(group_id)
    except InvalidRequestError as error:
        raise RefusedError(ErrorCode.invalid_group_id, str(error)) from error


def code_of(error: LogbrokerError) -> ErrorCode:
    """What a client is told of *error*."""
    if isinstance(error, RefusedError):
        return error.code
    trouble.tell(error)
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return ErrorCode.unknown_server_error


# Their advice is a call of the library, which is of no use to a client of the network.
_ADVISE_CALLS = (TopicExistsError, TopicNotFoundError, SubscriptionNotFoundError)


def told_of(error: LogbrokerError) -> dict[str, Any]:
    """The fields of an answer that say what went wrong, and why."""
    message = str(error)
    if isinstance(error, _ADVISE_CALLS):
        message = message.partition("; ")[0]
    return {"error_code": code_of(error), "error_message": message}
