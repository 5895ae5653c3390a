"""What the broker says about bindings and routes: plain values, as of the moment they were asked for."""

from __future__ import annotations

from typing import Literal

import msgspec


class StallDescription(msgspec.Struct, frozen=True):
    """A source partition whose records wait: the router cannot go on there, and tries again and again.

    Attributes:
        error: why.
        since_ms: when it was found first; milliseconds since 1970.
    """

    topic: str
    partition: int
    error: str
    since_ms: int


class BindingDescription(msgspec.Struct, frozen=True):
    """A binding, where it is, and what holds it up.

    Attributes:
        source: a topic, or a wildcard over topics.
        dead_letter: the topic that gets what its condition or transform fails for.
        when: a CEL expression.
        headers: header keys with the text that they must have; None: any.
        headers_match: whether all of them must match, or any.
        transform: a pipeline as TOML.
        unrouted: it takes what no other binding takes.
        topics: those that its source means now.
        lag: records in them that the router has not come to yet.
        stalled: the partitions of these topics in which the router is held up, by this binding or another.
    """

    name: str
    source: str
    target: str
    dead_letter: str
    when: str | None
    headers: dict[str, str | None]
    headers_match: Literal["all", "any"]
    transform: str | None
    unrouted: bool
    created_ms: int
    topics: list[str]
    lag: int
    stalled: list[StallDescription]


class RoutedMessage(msgspec.Struct, frozen=True):
    """A message that would be written. ``partition`` and ``timestamp_ms`` are None where the broker chooses them."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    partition: int | None
    timestamp_ms: int | None


class RouteVerdict(msgspec.Struct, frozen=True):
    """What one binding would do with a message.

    Attributes:
        taken: whether the message goes to its target or its dead letter.
        reason: one of ``Reason``'s values, such as "taken", "failed" or "when".
        because: the same as a sentence.
        error: what failed, where the message goes to the dead letter.
        messages: what would be written.
    """

    binding: str
    target: str
    taken: bool
    reason: str
    because: str
    error: str | None
    messages: list[RoutedMessage]


class RouteExplanation(msgspec.Struct, frozen=True):
    """Where a message would go, and what each binding of the directory says of it."""

    topic: str
    verdicts: list[RouteVerdict]

    @property
    def targets(self) -> list[str]:
        """The topics that it would be written to, in order; none where nothing takes it."""
        topics = [message.topic for verdict in self.verdicts for message in verdict.messages]
        return list(dict.fromkeys(topics))

    @property
    def is_routed(self) -> bool:
        """Whether any binding takes it."""
        return any(verdict.taken for verdict in self.verdicts)
