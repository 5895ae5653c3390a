"""The errors of the public face: storage's tree, under the name that users import it by."""

from logbroker_storage.errors import (
    BindingExistsError,
    BindingNotFoundError,
    BufferFullError,
    ClosedError,
    CorruptionError,
    DeliveryTimeoutError,
    DirectoryInUseError,
    FencedError,
    FileSystemError,
    ForkedError,
    InvalidConfigError,
    InvalidRequestError,
    InvalidTopicError,
    LeaseLostError,
    LogbrokerError,
    MessageIdInUseError,
    OffsetOutOfRangeError,
    OutOfOrderSequenceError,
    QueueEmptyError,
    RecordTooLargeError,
    RoutingLoopError,
    StorageFailedError,
    SubscriptionExistsError,
    SubscriptionNotFoundError,
    TopicExistsError,
    TopicNotFoundError,
    ViewError,
    WriteFailedError,
)

__all__ = [
    "LogbrokerError",
    # name another topic
    "TopicNotFoundError", "TopicExistsError", "InvalidTopicError",
    # name another subscription
    "SubscriptionNotFoundError", "SubscriptionExistsError",
    # mend the call
    "InvalidConfigError", "InvalidRequestError", "RecordTooLargeError",
    # choose another binding
    "BindingExistsError", "BindingNotFoundError", "RoutingLoopError",
    # another holder took over
    "FencedError", "OutOfOrderSequenceError",
    # seek elsewhere
    "OffsetOutOfRangeError", "CorruptionError",
    # the disk
    "WriteFailedError", "StorageFailedError", "FileSystemError", "DirectoryInUseError", "ViewError",
    # the handle
    "ClosedError", "ForkedError",
    # the message comes again, or another time
    "LeaseLostError", "QueueEmptyError",
    # wait, or send slower
    "BufferFullError", "DeliveryTimeoutError", "MessageIdInUseError",
]  # fmt: skip
