"""A durable log broker that lives inside your Python processes.

    import logbroker

    with logbroker.open("data") as broker:
        broker.create_topic("orders", partitions=3, exist_ok=True)
        with broker.producer() as producer:
            producer.send("orders", b"value", key=b"alice").result()
        with broker.consumer("orders", group="billing", start="earliest") as consumer:
            records = consumer.poll(timeout=1.0)

Any number of processes may open one directory at the same time; there is no server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio import AsyncBroker, AsyncConsumer, AsyncProducer, open_async
    from .broker import Broker, open  # noqa: A004  (logbroker.open, as the modules of the standard library have)
    from .consumer import Consumer
    from .descriptions import (
        GroupDescription,
        MemberDescription,
        OffsetDescription,
        PartitionDescription,
        TopicDescription,
    )
    from .errors import (
        BufferFullError,
        ClosedError,
        CorruptionError,
        DeliveryTimeoutError,
        DirectoryInUseError,
        FencedError,
        ForkedError,
        InvalidConfigError,
        InvalidRequestError,
        InvalidTopicError,
        LogbrokerError,
        OffsetOutOfRangeError,
        OutOfOrderSequenceError,
        RecordTooLargeError,
        StorageFailedError,
        TopicExistsError,
        TopicNotFoundError,
        ViewError,
        WriteFailedError,
    )
    from .producer import Producer
    from .receipts import Receipt
    from .records import Message, Record, RecordMetadata

__version__ = "0.1.0"

# Names are imported when they are first used, so that `logbroker --help` does not load the engine.
_HOMES = {
    "aio": ("AsyncBroker", "AsyncConsumer", "AsyncProducer", "open_async"),
    "broker": ("Broker", "open"),
    "consumer": ("Consumer",),
    "descriptions": (
        "GroupDescription",
        "MemberDescription",
        "OffsetDescription",
        "PartitionDescription",
        "TopicDescription",
    ),
    "errors": (
        "BufferFullError",
        "ClosedError",
        "CorruptionError",
        "DeliveryTimeoutError",
        "DirectoryInUseError",
        "FencedError",
        "ForkedError",
        "InvalidConfigError",
        "InvalidRequestError",
        "InvalidTopicError",
        "LogbrokerError",
        "OffsetOutOfRangeError",
        "OutOfOrderSequenceError",
        "RecordTooLargeError",
        "StorageFailedError",
        "TopicExistsError",
        "TopicNotFoundError",
        "ViewError",
        "WriteFailedError",
    ),
    "producer": ("Producer",),
    "receipts": ("Receipt",),
    "records": ("Message", "Record", "RecordMetadata"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'logbroker' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
