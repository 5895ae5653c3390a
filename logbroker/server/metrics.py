"""What a server counts, for Prometheus: ``--metrics`` serves it as text.

    logbroker_connections                                        open now
    logbroker_connections_closed_for_error_total                 their peer broke the protocol, or a handler failed
    logbroker_received_bytes_total, logbroker_sent_bytes_total   requests and answers
    logbroker_produced_records_total, …_batch_bytes_total        that were appended
    logbroker_fetched_batch_bytes_total                          that were sent
    logbroker_request_seconds{api}                               from a request's coming to its answer's going
    logbroker_sync_seconds                                       of a partition, in the server
    logbroker_group_lag{group, topic, partition}                 records behind the committed offset, at each look;
                                                                 of a queue, those that are not done
    logbroker_routed_records_total, logbroker_router_failures_total   of the router in this server, and its new starts
    logbroker_router_stalled{topic, partition}                   1 where a router cannot go on, at each look

A server whose metrics nobody asked for counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from logbroker_storage.errors import LogbrokerError, SubscriptionNotFoundError, TopicNotFoundError

from ..groups import TopicPartition
from ..queues.partition import QueuePartition
from ..routing.bindings import stalled_partitions
from ..subscriptions import Subscription, Subscriptions

if TYPE_CHECKING:
    from logbroker_storage.data_directory import DataDirectory

NAMESPACE = "logbroker"
SECONDS_BUCKETS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
)


class Counter(Protocol):
    """A number that grows."""

    def inc(self, amount: float = 1) -> None: ...


class Gauge(Counter, Protocol):
    """A number that goes up and down."""

    def dec(self, amount: float = 1) -> None: ...


class Histogram(Protocol):
    """How often a number was how large."""

    def observe(self, amount: float) -> None: ...


class _Uncounted:
    def inc(self, amount: float = 1) -> None: ...

    def dec(self, amount: float = 1) -> None: ...

    def observe(self, amount: float) -> None: ...


class Metrics:
    """The figures that go nowhere."""

    def __init__(self) -> None:
        nothing = _Uncounted()
        self.connections: Gauge = nothing
        self.closed_for_error: Counter = nothing
        self.bytes_in: Counter = nothing
        self.bytes_out: Counter = nothing
        self.records_in: Counter = nothing
        self.batch_bytes_in: Counter = nothing
        self.batch_bytes_out: Counter = nothing
        self.sync_seconds: Histogram = nothing
        self.routed_records: Counter = nothing
        self.router_failures: Counter = nothing

    def watch(self, directory: DataDirectory) -> None:
        """*directory* is being served."""

    def took(self, api: str, seconds: float) -> None:
        """A request of *api* was answered *seconds* after it had come."""

    def close(self) -> None:
        """Serve them no more."""


class PrometheusMetrics(Metrics):
    """The figures of one server, at ``http://host:port/metrics``."""

    def __init__(self, host: str, port: int) -> None:
        """*port* 0 takes a free one, which ``port`` then says."""
        import prometheus_client as prometheus

        super().__init__()
        self._host, self.port = host, port
        self._registry = registry = prometheus.CollectorRegistry()
        named: dict[str, Any] = {"namespace": NAMESPACE, "registry": registry}
        self.connections = prometheus.Gauge("connections", "Open connections", **named)
        self.closed_for_error = prometheus.Counter(
            "connections_closed_for_error",
            "Connections closed for what their peer sent, or a failure",
            **named,
        )
        self.bytes_in = prometheus.Counter("received_bytes", "Bytes of requests", **named)
        self.bytes_out = prometheus.Counter("sent_bytes", "Bytes of answers", **named)
        self.records_in = prometheus.Counter("produced_records", "Records appended", **named)
        self.batch_bytes_in = prometheus.Counter("produced_batch_bytes", "Bytes of batches appended", **named)
        self.batch_bytes_out = prometheus.Counter("fetched_batch_bytes", "Bytes of batches sent", **named)
        self.sync_seconds = prometheus.Histogram(
            "sync_seconds", "Disk syncs of partitions", buckets=SECONDS_BUCKETS, **named
        )
        self.routed_records = prometheus.Counter("routed_records", "Records the router went through", **named)
        self.router_failures = prometheus.Counter(
            "router_failures", "Times the router began again after an error", **named
        )
        self._request_seconds = prometheus.Histogram(
            "request_seconds", "From request to answer", ["api"], buckets=SECONDS_BUCKETS, **named
        )
        self._by_api: dict[str, Histogram] = {}
        self._server: Any = None

    def watch(self, directory: DataDirectory) -> None:
        import prometheus_client as prometheus

        self._registry.register(_GroupLag(directory))
        self._registry.register(_RouterStalls(directory))
        try:
            self._server, _ = prometheus.start_http_server(self.port, self._host, self._registry)
        except OSError as error:
            raise LogbrokerError(
                f"the metrics cannot be served on {self._host}:{self.port}: {error.strerror or error}; "
                "name another address"
            ) from error
        self.port = self._server.server_port

    def took(self, api: str, seconds: float) -> None:
        histogram = self._by_api.get(api)
        if histogram is None:
            histogram = self._by_api[api] = self._request_seconds.labels(api)
        histogram.observe(seconds)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _GroupLag:
    """Read off the directory at each look, whoever commits to it."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._subscriptions = Subscriptions(directory)

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(
            f"{NAMESPACE}_group_lag",
            "Records between a group's committed offset and the high watermark",
            labels=["group", "topic", "partition"],
        )
        if not self._directory.closed:
            for group in self._directory.groups.names():
                for topic, partition, lag in _lag_of(self._directory, group):
                    family.add_metric([group, topic, str(partition)], lag)
            for subscription in self._subscriptions.all().values():
                if subscription.kind == "queue":
                    for (topic, partition), lag in self._lag_of_queue(subscription):
                        family.add_metric([subscription.name, topic, str(partition)], lag)
        yield family

    def _lag_of_queue(self, subscription: Subscription) -> Iterator[tuple[TopicPartition, int]]:
        for place in self._subscriptions.places(subscription):
            try:
                yield place, QueuePartition(self._directory, subscription, place).lag()
            except (SubscriptionNotFoundError, TopicNotFoundError):
                continue  # deleted a moment ago


class _RouterStalls:
    """Likewise, whichever process the router is in."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(
            f"{NAMESPACE}_router_stalled",
            "1 for each partition in which the router cannot go on",
            labels=["topic", "partition"],
        )
        if not self._directory.closed:
            for stall in stalled_partitions(self._directory):
                family.add_metric([stall.topic, str(stall.partition)], 1)
        yield family


def _lag_of(directory: DataDirectory, group: str) -> Iterator[tuple[str, int, int]]:
    for event in directory.groups.committed_offsets(group):
        try:
            offsets = directory.log(event.topic, event.partition).offsets()
        except TopicNotFoundError:
            continue  # deleted a moment ago
        lag = offsets.high_watermark - max(event.offset, offsets.log_start_offset)
        yield event.topic, event.partition, max(0, lag)
