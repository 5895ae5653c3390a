"""Folders in ``logs/`` that no topic event names, as the view is made from the logs.

    the folder                                           then
    is of a creation or removal that was cut short       it is removed
    holds records that somebody put there                it becomes a topic, or the next partition of one
    is behind a gap of its topic, and holds records      it stays as it is, unread
    is behind a topic that is being deleted              the same
    is a copy of the journal, or nearly a partition's    the same

Records are never thrown away.
"""

from __future__ import annotations

import logging
import os
import secrets

from .events import TopicEvent, encode_event
from .files import Files, remove_temporaries
from .journal import JOURNAL_TOPIC, JOURNAL_TOPIC_ID, Journal
from .layout import DataLayout, parse_partition_folder
from .topic_folders import has_records, remove_deleted_folders, remove_folder, topic_id_of

logger = logging.getLogger("logbroker.recovery")

# Of a topic whose folders nothing else is known of: with the defaults the cleaner would remove what is a week old.
UNKNOWN_CONFIG = {"retention.ms": "-1"}


def settle_strangers(
    files: Files, layout: DataLayout, journal: Journal, topics: dict[str, TopicEvent]
) -> None:
    """Remove them, or adopt them into *topics*, which are those that the journal knows. For the only process."""
    remove_deleted_folders(files, layout.logs)
    names = files.listdir(layout.logs)
    remove_temporaries(files, layout.logs, names, os.path.basename(layout.recovery_points))
    strangers, left_alone = _sorted_out(files, layout, names, topics)
    for topic, found in strangers.items():
        numbers = _next_to(topics.get(topic), found)
        for number in set(found) - set(numbers):
            folder = layout.partition(topic, number)
            if has_records(files, folder):
                left_alone.append(os.path.basename(folder))
            else:
                remove_folder(files, folder)
        folders = [layout.partition(topic, number) for number in numbers]
        if any(has_records(files, folder) for folder in folders):
            topics[topic] = _adopt(files, layout, journal, topic, numbers, topics)
        else:
            for folder in folders:
                remove_folder(files, folder)
    if left_alone:
        logger.warning(
            "%s: no topic has such partitions, so they stay unread", ", ".join(map(repr, sorted(left_alone)))
        )
    # The names of adopted folders, and of the journal's, if that was made just now.
    files.fsync_directory(layout.logs)


def _sorted_out(
    files: Files, layout: DataLayout, names: list[str], topics: dict[str, TopicEvent]
) -> tuple[dict[str, list[int]], list[str]]:
    """The partitions that no topic knows, by topic, and the names that look like one's; others are no matter of ours.

    Folders of a topic that is being deleted are removed.
    """
    strangers: dict[str, list[int]] = {}
    left_alone: list[str] = []
    for name in names:
        parsed = parse_partition_folder(name)
        if parsed is None:
            if _ends_in_a_number(name):
                left_alone.append(name)
            continue
        topic, number = parsed
        if topic == JOURNAL_TOPIC:
            if number:
                left_alone.append(name)  # a copy of the journal is no topic
            continue
        known = topics.get(topic)
        if known is None or number >= known.partitions:
            strangers.setdefault(topic, []).append(number)
        elif known.state == "deleting" and topic_id_of(files, f"{layout.logs}/{name}") == known.topic_id:
            remove_folder(files, f"{layout.logs}/{name}")
    return strangers, left_alone


def _ends_in_a_number(name: str) -> bool:
    _, dash, number = name.rpartition("-")
    return bool(dash) and number.isdigit()


def _next_to(known: TopicEvent | None, found: list[int]) -> list[int]:
    """Those of the *found* partitions that may be the topic's, ascending.

    A topic grows by all the partitions up to its new number, so what lies behind a gap is none that it ever had.
    Nothing tells the gaps of a topic that the journal does not know from folders that were lost. One that is being
    deleted gets nothing more: its name is free for what it left to become a topic when the view is made next.
    """
    if known is None:
        return sorted(found)
    if known.state == "deleting":
        return []
    return [number for place, number in enumerate(sorted(found), known.partitions) if number == place]


def _adopt(
    files: Files,
    layout: DataLayout,
    journal: Journal,
    topic: str,
    numbers: list[int],
    topics: dict[str, TopicEvent],
) -> TopicEvent:
    """Have the journal know the partitions *numbers* of *topic*."""
    known = topics.get(topic)
    adopted = TopicEvent(
        name=topic,
        topic_id=known.topic_id if known else _free_id(files, layout.partition(topic, numbers[0]), topics),
        partitions=max(numbers) + 1,
        config=known.config if known else UNKNOWN_CONFIG,
        created_ms=known.created_ms if known else 0,
    )
    logger.warning(
        "folders of %s-%s hold records but the journal does not know them: adopted%s",
        topic,
        numbers,
        "" if known else ", to be kept for ever until the topic is configured anew",
    )
    journal.write([(adopted.key(), encode_event(adopted))])
    return adopted


def _free_id(files: Files, folder: str, topics: dict[str, TopicEvent]) -> bytes:
    """The topic id that a folder says, or a new one where it says none, or is a copy of what a topic's folder was.

    All that is known of a partition is known by the id: two topics of one id would each write the other's end.
    """
    noted = topic_id_of(files, folder)
    taken = {JOURNAL_TOPIC_ID, *(event.topic_id for event in topics.values())}
    return secrets.token_bytes(16) if noted is None or noted in taken else noted
