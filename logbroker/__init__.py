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
    from .aio import AsyncBroker as AsyncBroker
    from .aio import open_async as open_async
    from .aio_consumer import AsyncConsumer as AsyncConsumer
    from .aio_producer import AsyncProducer as AsyncProducer
    from .aio_queue import AsyncMessageBatch as AsyncMessageBatch
    from .aio_queue import AsyncQueue as AsyncQueue
    from .aio_queue import AsyncQueueMessage as AsyncQueueMessage
    from .aio_requests import AsyncResponder as AsyncResponder
    from .aio_transaction import AsyncTransaction as AsyncTransaction
    from .broker import Broker as Broker
    from .broker import open as open  # noqa: A004  (as the standard library's modules have)
    from .consumer import Consumer as Consumer
    from .dead_letters import Death as Death
    from .descriptions import GroupDescription as GroupDescription
    from .descriptions import MemberDescription as MemberDescription
    from .descriptions import OffsetDescription as OffsetDescription
    from .descriptions import PartitionDescription as PartitionDescription
    from .descriptions import SubscriptionDescription as SubscriptionDescription
    from .descriptions import SubscriptionPartitionDescription as SubscriptionPartitionDescription
    from .descriptions import TopicDescription as TopicDescription
    from .errors import BindingExistsError as BindingExistsError
    from .errors import BindingNotFoundError as BindingNotFoundError
    from .errors import BufferFullError as BufferFullError
    from .errors import ClosedError as ClosedError
    from .errors import CorruptionError as CorruptionError
    from .errors import DeliveryTimeoutError as DeliveryTimeoutError
    from .errors import DirectoryInUseError as DirectoryInUseError
    from .errors import FencedError as FencedError
    from .errors import ForkedError as ForkedError
    from .errors import InvalidConfigError as InvalidConfigError
    from .errors import InvalidRequestError as InvalidRequestError
    from .errors import InvalidTopicError as InvalidTopicError
    from .errors import LeaseLostError as LeaseLostError
    from .errors import LogbrokerError as LogbrokerError
    from .errors import MessageIdInUseError as MessageIdInUseError
    from .errors import OffsetOutOfRangeError as OffsetOutOfRangeError
    from .errors import OutOfOrderSequenceError as OutOfOrderSequenceError
    from .errors import QueueEmptyError as QueueEmptyError
    from .errors import RecordTooLargeError as RecordTooLargeError
    from .errors import RoutingLoopError as RoutingLoopError
    from .errors import StorageFailedError as StorageFailedError
    from .errors import SubscriptionExistsError as SubscriptionExistsError
    from .errors import SubscriptionNotFoundError as SubscriptionNotFoundError
    from .errors import TopicExistsError as TopicExistsError
    from .errors import TopicNotFoundError as TopicNotFoundError
    from .errors import ViewError as ViewError
    from .errors import WriteFailedError as WriteFailedError
    from .expressions import Expression as Expression
    from .expressions import ExpressionError as ExpressionError
    from .expressions import compile_expression as compile_expression
    from .producer import Producer as Producer
    from .queues.consumer import MessageBatch as MessageBatch
    from .queues.consumer import Queue as Queue
    from .queues.consumer import QueueMessage as QueueMessage
    from .receipts import Receipt as Receipt
    from .records import Message as Message
    from .records import Record as Record
    from .records import RecordMetadata as RecordMetadata
    from .redrive import DeadLetter as DeadLetter
    from .redrive import Redriven as Redriven
    from .request_reply.correlation import RequestCounts as RequestCounts
    from .request_reply.errors import NoRespondersError as NoRespondersError
    from .request_reply.errors import RequestTimeoutError as RequestTimeoutError
    from .request_reply.errors import ResponderError as ResponderError
    from .request_reply.messages import Reply as Reply
    from .request_reply.messages import Request as Request
    from .request_reply.responder import Responder as Responder
    from .request_reply.responder import ResponderCounts as ResponderCounts
    from .routing.descriptions import BindingDescription as BindingDescription
    from .routing.descriptions import RoutedMessage as RoutedMessage
    from .routing.descriptions import RouteExplanation as RouteExplanation
    from .routing.descriptions import RouteVerdict as RouteVerdict
    from .routing.descriptions import StallDescription as StallDescription
    from .transaction import Transaction as Transaction
    from .transaction_state import TransactionState as TransactionState
    from .transform import TransformProgress as TransformProgress
    from .transforms import Pipeline as Pipeline
    from .transforms import PipelineError as PipelineError
    from .transforms import TransformError as TransformError
    from .transforms import load_pipeline as load_pipeline

__version__ = "0.1.0"

# Names are imported when they are first used, so that `logbroker --help` does not load the engine.
_HOMES = {
    "aio": ("AsyncBroker", "open_async"),
    "aio_consumer": ("AsyncConsumer",),
    "aio_producer": ("AsyncProducer",),
    "aio_queue": ("AsyncMessageBatch", "AsyncQueue", "AsyncQueueMessage"),
    "aio_requests": ("AsyncResponder",),
    "aio_transaction": ("AsyncTransaction",),
    "broker": ("Broker", "open"),
    "consumer": ("Consumer",),
    "dead_letters": ("Death",),
    "descriptions": (
        "GroupDescription",
        "MemberDescription",
        "OffsetDescription",
        "PartitionDescription",
        "SubscriptionPartitionDescription",
        "SubscriptionDescription",
        "TopicDescription",
    ),
    "errors": (
        "BindingExistsError",
        "BindingNotFoundError",
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
        "LeaseLostError",
        "LogbrokerError",
        "MessageIdInUseError",
        "OffsetOutOfRangeError",
        "OutOfOrderSequenceError",
        "QueueEmptyError",
        "RecordTooLargeError",
        "RoutingLoopError",
        "StorageFailedError",
        "SubscriptionExistsError",
        "SubscriptionNotFoundError",
        "TopicExistsError",
        "TopicNotFoundError",
        "ViewError",
        "WriteFailedError",
    ),
    "expressions": ("Expression", "ExpressionError", "compile_expression"),
    "producer": ("Producer",),
    "queues.consumer": ("MessageBatch", "Queue", "QueueMessage"),
    "receipts": ("Receipt",),
    "records": ("Message", "Record", "RecordMetadata"),
    "redrive": ("DeadLetter", "Redriven"),
    "request_reply.correlation": ("RequestCounts",),
    "request_reply.errors": ("NoRespondersError", "RequestTimeoutError", "ResponderError"),
    "request_reply.messages": ("Reply", "Request"),
    "request_reply.responder": ("Responder", "ResponderCounts"),
    "routing.descriptions": (
        "BindingDescription",
        "RoutedMessage",
        "RouteExplanation",
        "RouteVerdict",
        "StallDescription",
    ),
    "transaction": ("Transaction",),
    "transaction_state": ("TransactionState",),
    "transform": ("TransformProgress",),
    "transforms": ("Pipeline", "PipelineError", "TransformError", "load_pipeline"),
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
