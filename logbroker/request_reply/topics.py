"""The topics of request and reply: their names, their configuration, and their end.

    topic                          made by                            ends
    the request topic, any name    the user, or the first responder   never by itself
    __reply-<process id>-<n>       a broker object's first request    when that is closed; when its process is dead,
                                                                      any other process deletes it (every 3 s)

A reply topic is read by one process alone and worth nothing without it, so nothing of it is synced. Its reader removes
what it has read, a segment at a time; ``retention.ms`` is for one that no longer reads.

A request topic that is made on demand is not synced either: a power cut can take requests back that nobody has got a
reply to. Make it yourself for another choice (``durability=fsync``: a request is on the disk before anybody sees it).
"""

from __future__ import annotations

import logging
import re

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import TopicExistsError, TopicNotFoundError
from logbroker_storage.log_config import ConfigValue, LogConfig

from ..topic_names import REPLY_PREFIX, check_topic_name

logger = logging.getLogger("logbroker.requests")

REPLY_SEGMENT_BYTES = 4 << 20
REQUEST_CONFIG: dict[str, ConfigValue] = {
    "durability": "os",
    "retention.policy": "consumed",  # what every responder is done with goes,
    "retention.ms": 86_400_000,  # and the rest after a day
    "segment.bytes": 16 << 20,
}
REPLY_CONFIG: dict[str, ConfigValue] = {
    "durability": "os",
    "retention.ms": 600_000,
    "segment.bytes": REPLY_SEGMENT_BYTES,
    "max.message.bytes": 64 << 20,
}

_REPLY_TOPIC = re.compile(re.escape(REPLY_PREFIX) + "([0-9]+-[0-9a-f]+)-[0-9]+")


def reply_topic_name(process_id: str, number: int) -> str:
    return f"{REPLY_PREFIX}{process_id}-{number}"


def process_of(reply_topic: str) -> str | None:
    """The id of the process that a reply topic belongs to; None when it is no reply topic."""
    found = _REPLY_TOPIC.fullmatch(reply_topic)
    return None if found is None else found[1]


def have_request_topic(directory: DataDirectory, topic: str) -> None:
    """Have *topic* be there, as users expect of one that they did not make themselves.

    Raises:
        InvalidTopicError: no user's topic can have the name.
    """
    check_topic_name(topic)
    try:
        directory.topic(topic)
    except TopicNotFoundError:
        try:
            directory.create_topic(topic, 1, LogConfig.parse(REQUEST_CONFIG))
        except TopicExistsError:
            pass  # another process was first


def sweep_reply_topics(directory: DataDirectory) -> None:
    """Delete the reply topics of dead processes."""
    for name in directory.topics():
        process_id = process_of(name)
        if process_id is None or directory.process_alive(process_id):
            continue
        try:
            directory.delete_topic(name)
        except TopicNotFoundError:
            continue  # another process swept it
        logger.info("reply topic %s of a dead process was deleted", name)
