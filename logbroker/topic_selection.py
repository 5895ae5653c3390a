"""Which topics a consumer or a subscription wants: names, patterns, or both, and what they come to at a given moment.

A name must exist when it is made, because a misspelt name would otherwise wait for ever. A
pattern may match nothing yet: it takes up topics when they are created.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from logbroker_storage.errors import InvalidRequestError, InvalidTopicError, TopicNotFoundError

from .arguments import several
from .topic_names import check_topic_name, compiled_pattern, is_internal, is_pattern, matches


def entries_of(topics: str | Iterable[str]) -> list[str]:
    """What a topics argument names, ascending and without doubles.

    Raises:
        InvalidTopicError: something in it is no text.
        InvalidRequestError: it is neither text nor an iterable.
    """
    entries = [topics] if isinstance(topics, str) else list(several("topics", topics))
    for entry in entries:
        if not isinstance(entry, str):
            raise InvalidTopicError.no_text(entry)
    return sorted(set(entries))


class TopicSelection(msgspec.Struct, frozen=True):
    """A topics argument, checked; both tuples ascending and without doubles."""

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()

    @classmethod
    def parse(cls, topics: str | Iterable[str]) -> TopicSelection:
        """From a name, a pattern, or any iterable of them.

        Raises:
            InvalidTopicError: a name or pattern that no topic can have.
            InvalidRequestError: no topic at all, or something else.
        """
        wanted = entries_of(topics)
        if not wanted:
            raise InvalidRequestError("give at least one topic: a name, a list of names, or a pattern")
        for pattern in filter(is_pattern, wanted):
            compiled_pattern(pattern)
        names = tuple(check_topic_name(name) for name in wanted if not is_pattern(name))
        return cls(names, tuple(filter(is_pattern, wanted)))

    @property
    def entries(self) -> list[str]:
        """The names, then the patterns."""
        return [*self.names, *self.patterns]

    @property
    def single_topic(self) -> str | None:
        """The topic's name, when it is exactly one name; results are then keyed by partition alone."""
        return self.names[0] if len(self.names) == 1 and not self.patterns else None

    def resolve(self, existing: Collection[str]) -> list[str]:
        """The topics of *existing* that are meant, ascending."""
        meant = set(self.names).intersection(existing)
        for pattern in self.patterns:
            meant.update(name for name in existing if matches(pattern, name))
        return sorted(meant)

    def wants(self, name: str) -> bool:
        return name in self.names or any(matches(pattern, name) for pattern in self.patterns)

    def unread(self, names: Collection[str]) -> tuple[str, ...]:
        """Those of *names*, ascending, that are not meant."""
        return tuple(sorted(name for name in set(names).difference(self.names) if not self.wants(name)))

    def check_names(self, existing: Collection[str]) -> None:
        """Raises TopicNotFoundError for the first name that is not in *existing*."""
        for name in self.names:
            if name not in existing:
                raise TopicNotFoundError(name, known=[known for known in existing if not is_internal(known)])
