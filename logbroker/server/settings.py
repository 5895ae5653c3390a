"""What ``logbroker serve`` can be told."""

from __future__ import annotations

import msgspec


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses, limits and defaults of a server.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        advertised_host: the name that clients are told to connect to; default: the host.
        advertised_port: default: the port that is listened on.
        auto_create_topics: a topic that a client asks for is made, as Kafka does by default.
        default_partitions: of a topic that is made without a number.
        max_request_bytes: the longest Produce request; other requests are at most 4 MiB.
        max_fetch_bytes: the most that one answer to a fetch holds, unless a single batch is larger.
        max_unsent_bytes: of answers of all connections that are not sent yet; above it one to a fetch holds one batch.
        max_buffered_bytes: of requests of all connections that are not answered yet; above it no more is read.
        drain_timeout_s: at the end, how long requests at work may take.
        group_heartbeat_ms, group_session_ms: of members of the KIP-848 protocol, which the server decides.
        router: whether it routes by the directory's bindings, too.
        initial_rebalance_delay_ms: how long a new group of the classic protocol waits for more members.
    """

    host: str = "127.0.0.1"
    port: int = 9092
    advertised_host: str | None = None
    advertised_port: int | None = None
    auto_create_topics: bool = True
    default_partitions: int = 1
    max_request_bytes: int = 64 << 20
    max_fetch_bytes: int = 55 << 20
    max_unsent_bytes: int = 512 << 20
    max_buffered_bytes: int = 256 << 20
    drain_timeout_s: float = 10.0
    group_heartbeat_ms: int = 5_000
    group_session_ms: int = 45_000
    router: bool = True
    initial_rebalance_delay_ms: int = 0
