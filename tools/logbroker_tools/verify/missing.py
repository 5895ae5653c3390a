"""Partitions that there must be, and that have no folder, or no segment in it.

    known to be there                                       from
    every partition of a topic                              the journal, which says that the topic is live
    a partition of which something has reached the disk     the recovery points, where the journal knows its
                                                            topic, or is itself what is missing

A topic's folders are made before the journal calls it live; they go after the journal has called it deleted and the
recovery points have left it out. So a topic that is live at two looks, under one topic id, has had its folders all
the time in between: what is missing then is no work of another process, nor of one that died. A partition whose
oldest segments are missing cannot be told from one whose records have expired.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from logbroker_storage.errors import LogbrokerError
from logbroker_storage.events import AnyEvent, TopicEvent
from logbroker_storage.files import Files
from logbroker_storage.segment_files import list_segments

from ..findings import Code, Finding, Severity
from ..layout import JOURNAL_TOPIC, find, recovery_points
from ..reading import live_events

ADVICE = "restore it from a backup if there is one: the next open makes an empty one"
ADVICE_JOURNAL = (
    "restore it from a backup if there is one: the next open begins a new journal, without configurations, "
    "committed offsets and subscriptions"
)
ATTEMPTS = 3  # at reading a journal that may be compacted meanwhile, which is rare


class _Known(NamedTuple):
    """Why a partition must be there: *topic_id* is None where there is no journal to tell."""

    topic_id: bytes | None
    recovery_point: int


def verify_nothing_is_missing(
    log_directory: str, files: Files, wants: Callable[[str, int], bool]
) -> Iterator[Finding]:
    """A finding about each partition that *wants* lets through, and that is known but has no segment."""
    missing = {
        place: known
        for place, known in _known(log_directory, files).items()
        if wants(*place) and not _has_segments(log_directory, files, *place)
    }
    if not missing:
        return
    still_known = _known(log_directory, files)
    for (topic, partition), known in missing.items():
        again = still_known.get((topic, partition))
        if again is not None and again.topic_id == known.topic_id:
            yield _finding(log_directory, topic, partition, known.recovery_point)


def _known(log_directory: str, files: Files) -> dict[tuple[str, int], _Known]:
    # The points first: whoever deletes a topic journals it before they leave it out.
    points = recovery_points(log_directory)
    events = _journal(log_directory, files)
    if events is None:
        return {place: _Known(None, point) for place, point in points.items() if point > 0}
    return {
        (event.name, number): _Known(event.topic_id, points.get((event.name, number), 0))
        for event in events.values()
        if isinstance(event, TopicEvent) and event.state == "live"
        for number in range(event.partitions)
    }


def _journal(log_directory: str, files: Files) -> dict[bytes, AnyEvent] | None:
    """What the journal says in the end; None where it is missing or cannot be read."""
    folder = os.path.join(log_directory, f"{JOURNAL_TOPIC}-0")
    for _ in range(ATTEMPTS):
        if not _has_segments(log_directory, files, JOURNAL_TOPIC, 0):
            return None
        try:
            return live_events(find(folder, kafka=False), None)
        except FileNotFoundError:
            continue  # a segment that was compacted since it was listed
        except (LogbrokerError, OSError):
            return None
    return None


def _has_segments(log_directory: str, files: Files, topic: str, partition: int) -> bool:
    folder = os.path.join(log_directory, f"{topic}-{partition}")
    try:
        return os.path.isdir(folder) and bool(list_segments(files, folder))
    except FileNotFoundError:
        return False  # moved aside between the two looks


def _finding(log_directory: str, topic: str, partition: int, recovery_point: int) -> Finding:
    folder = os.path.join(log_directory, f"{topic}-{partition}")
    what = "there is no segment in it" if os.path.isdir(folder) else "the folder is missing"
    lost = f", and offsets below {recovery_point} had reached the disk" if recovery_point else ""
    return Finding(
        Severity.ERROR,
        Code.MISSING_PARTITION,
        folder,
        what + lost,
        end_offset=recovery_point or None,
        advice=ADVICE_JOURNAL if topic == JOURNAL_TOPIC else ADVICE,
    )
