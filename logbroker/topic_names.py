"""Names of topics, groups and producers, and patterns over topics.

    topic name      1 to 249 of [a-zA-Z0-9._-], not "." or ".."     as in Kafka: it becomes a folder's name
    internal        begins with "__"                                not for users, matched by no pattern
    reply topic     begins with "__reply-"                          internal; anybody may send a reply there
    pattern         a name with "*" (any run), "?" (one character)  "*" also runs across dots
    group name      printable text of 1 to 240 bytes                a committed offset's key in the view has
    producer name   the same                                        511 bytes for group, topic and partition

No character of a pattern can be in a name, so an argument is one or the other by its looks.
"""

from __future__ import annotations

import functools
import re

from logbroker_storage.errors import InvalidRequestError, InvalidTopicError

MAX_NAME_CHARACTERS = 249
MAX_NAME_BYTES = 240
INTERNAL_PREFIX = "__"
REPLY_PREFIX = "__reply-"

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_PATTERN = re.compile(r"[a-zA-Z0-9._*?-]{1,249}")
_WILDCARDS = frozenset("*?")


def is_internal(name: str) -> bool:
    return name.startswith(INTERNAL_PREFIX)


def is_reply_topic(name: str) -> bool:
    return name.startswith(REPLY_PREFIX) and _NAME.fullmatch(name) is not None


def is_pattern(name: str) -> bool:
    return not _WILDCARDS.isdisjoint(name)


def check_topic_name(name: str) -> str:
    """*name*, if a user may create a topic of it.

    Raises:
        InvalidTopicError: says which rule it breaks.
    """
    if not isinstance(name, str):
        raise InvalidTopicError(f"a topic's name is text, not {type(name).__name__}: {name!r}")
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise InvalidTopicError(
            f"{name!r} cannot be a topic's name: use 1 to {MAX_NAME_CHARACTERS} of the characters "
            "a-z A-Z 0-9 . _ - (and not '.' or '..' alone)"
        )
    if is_internal(name):
        raise InvalidTopicError(f"{name!r} cannot be a topic's name: names that begin with '__' are internal")
    return name


def check_reply_to(name: str) -> str:
    """*name*, if a reply may be sent there: where users may send to, and to reply topics.

    Raises:
        InvalidTopicError: it is another internal topic, or no topic's name.
    """
    return name if is_reply_topic(name) else check_topic_name(name)


def check_transactional_id(name: str) -> str:
    """*name*, if it can name the transactions of somebody.

    Raises:
        InvalidRequestError: says which rule it breaks.
    """
    return _printable("transactional id", name)


def check_group_name(name: str) -> str:
    """*name*, if it can name a consumer group.

    Raises:
        InvalidRequestError: says which rule it breaks.
    """
    return _printable("group", name)


def check_producer_name(name: str) -> str:
    """*name*, if it can name a producer.

    Raises:
        InvalidRequestError: says which rule it breaks.
    """
    return _printable("producer", name)


def _printable(whose: str, name: str) -> str:
    if not isinstance(name, str):
        raise InvalidRequestError(f"a {whose}'s name is text, not {type(name).__name__}: {name!r}")
    if not name or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidRequestError(
            f"{name!r} cannot be a {whose}'s name: use printable characters, 1 to {MAX_NAME_BYTES} bytes of UTF-8"
        )
    return name


@functools.lru_cache(maxsize=256)
def compiled_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression for a topic pattern.

    Raises:
        InvalidTopicError: it has characters that no topic name has.
    """
    if not _PATTERN.fullmatch(pattern):
        raise InvalidTopicError(
            f"{pattern!r} cannot be a topic pattern: use a topic's characters, '*' for any run of them and "
            "'?' for one"
        )
    return re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."))


def matches(pattern: str, name: str) -> bool:
    """Whether the topic *name* is one of *pattern*'s; internal topics never are."""
    return not is_internal(name) and compiled_pattern(pattern).fullmatch(name) is not None
