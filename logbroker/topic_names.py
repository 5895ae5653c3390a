"""Names of topics, groups, subscriptions, producers and bindings, and two kinds of patterns over topics.

    topic name      1 to 249 of [a-zA-Z0-9._-], not "." or ".."     as in Kafka: it becomes a folder's name
    internal        begins with "__"                                not for users, matched by no pattern
    reply topic     begins with "__reply-"                          internal; anybody may send a reply there
    pattern         a name with "*" (any run), "?" (one character)  a consumer's; "*" also runs across dots
    wildcard        a name whose tokens, between dots, may be "*"   a binding's, as in NATS: "*" is exactly one
                    and the last one ">"                            token, ">" one or more to the end
    group name      printable text of 1 to 240 bytes                a committed offset's key in the view has
    producer name   the same                                        511 bytes for group, topic and partition
    binding name    the same

No character of a pattern or wildcard can be in a name, so an argument is one or the other by its looks.

                          orders.eu   orders.eu.de   orders   orders-old.eu
    pattern "orders.*"        yes         yes          no          no
    pattern "orders*"         yes         yes          yes         yes
    wildcard "orders.*"       yes         no           no          no
    wildcard "orders.>"       yes         yes          no          no
    wildcard "*.eu"           yes         no           no          yes
    wildcard "orders*"        refused: "*" is a whole token
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
_PATTERN_CHARACTERS = frozenset("*?")
_WILDCARD_CHARACTERS = frozenset("*>")
_ONE_TOKEN, _MORE_TOKENS = "*", ">"
_TOKEN = re.compile(r"[a-zA-Z0-9_-]*")


def is_internal(name: str) -> bool:
    return name.startswith(INTERNAL_PREFIX)


def is_reply_topic(name: str) -> bool:
    return name.startswith(REPLY_PREFIX) and _NAME.fullmatch(name) is not None


def is_pattern(name: str) -> bool:
    return not _PATTERN_CHARACTERS.isdisjoint(name)


def check_topic_name(name: str) -> str:
    """*name*, if a user may create a topic of it.

    Raises:
        InvalidTopicError: says which rule it breaks.
    """
    if is_internal(check_any_topic_name(name)):
        raise InvalidTopicError(f"{name!r} cannot be a topic's name: names that begin with '__' are internal")
    return name


def check_any_topic_name(name: str) -> str:
    """*name*, if there can be a topic of it, be it an internal one.

    Raises:
        InvalidTopicError: says which rule it breaks.
    """
    if not isinstance(name, str):
        raise InvalidTopicError.no_text(name)
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise InvalidTopicError(
            f"{name!r} cannot be a topic's name: use 1 to {MAX_NAME_CHARACTERS} of the characters "
            "a-z A-Z 0-9 . _ - (and not '.' or '..' alone)"
        )
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


def check_subscription_name(name: str) -> str:
    """*name*, if it can name a subscription.

    Raises:
        InvalidRequestError: says which rule it breaks.
    """
    return _printable("subscription", name)


def check_producer_name(name: str) -> str:
    """*name*, if it can name a producer.

    Raises:
        InvalidRequestError: says which rule it breaks.
    """
    return _printable("producer", name)


def check_binding_name(name: str) -> str:
    """*name*, if it can name a binding.

    Raises:
        InvalidRequestError: says which rule it breaks.
    """
    return _printable("binding", name)


def check_text(whose: str, name: str) -> str:
    """*name*, if it is text; *whose* name it is, is for the message.

    Raises:
        InvalidRequestError: it is not.
    """
    if not isinstance(name, str):
        raise InvalidRequestError(f"a {whose}'s name is text, not {type(name).__name__}: {name!r:.100}")
    return name


def _printable(whose: str, name: str) -> str:
    check_text(whose, name)
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


# Wildcards ------------------------------------------------------------------------------------------------


def is_wildcard(source: str) -> bool:
    return not _WILDCARD_CHARACTERS.isdisjoint(source)


def check_source(source: str) -> str:
    """*source*, if a binding may take records of it: a topic's name or a wildcard.

    Raises:
        InvalidTopicError: says which rule it breaks.
    """
    if not isinstance(source, str) or not is_wildcard(source):
        return check_topic_name(source)
    compiled_wildcard(source)
    return source


@functools.lru_cache(maxsize=256)
def compiled_wildcard(wildcard: str) -> re.Pattern[str]:
    """The regular expression for a wildcard over topics.

    Raises:
        InvalidTopicError: a token is more than a wildcard and no part of a name, or ">" is not the last one.
    """
    tokens = wildcard.split(".")
    more = tokens[-1] == _MORE_TOKENS
    parts = [_token_expression(token, wildcard) for token in (tokens[:-1] if more else tokens)]
    return re.compile(r"\.".join([*parts, ".*"] if more else parts))


def _token_expression(token: str, wildcard: str) -> str:
    if token == _ONE_TOKEN:
        return "[^.]*"
    if not _TOKEN.fullmatch(token):
        raise InvalidTopicError(
            f"{wildcard!r} cannot be a source: between dots stand a name's characters, or '*' alone for exactly one "
            "token; '>' alone at the end is one token or more"
        )
    return re.escape(token)


def source_matches(source: str, name: str) -> bool:
    """Whether a binding of *source* takes records of the topic *name*; a wildcard never does of internal ones."""
    if not is_wildcard(source):
        return source == name
    return not is_internal(name) and compiled_wildcard(source).fullmatch(name) is not None
