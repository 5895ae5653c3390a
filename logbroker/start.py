"""Where a consumer begins in a partition for which nothing is committed: the start= argument.

start                    offset
"earliest"               the log start offset
"latest"                 the high watermark; but a partition that came to be after the consumer is read
                         from its beginning, because all of it is later than "latest"
an aware datetime        of the first record that is not older; the high watermark when all are
{partition: offset}      that one; the log start offset for partitions that are not in the mapping
{(topic, partition): …}  the same, for several topics

An offset outside of the log, as it is then, means the log's start, or its high watermark: what is committed for a group
must not leave out records that come later.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Collection, Mapping
from typing import Literal

from logbroker_storage.errors import InvalidRequestError
from logbroker_storage.log_offsets import Isolation
from logbroker_storage.partition_log import PartitionLog

from .arguments import is_place
from .groups import TopicPartition
from .records import INT64_MAX, timestamp_ms_of

logger = logging.getLogger("logbroker.consumer")

Start = Literal["earliest", "latest"] | datetime.datetime | Mapping[int, int] | Mapping[TopicPartition, int]


def check_start(start: Start) -> Start:
    """*start*, if it is one of the table's.

    Raises:
        InvalidRequestError: it is not.
    """
    if isinstance(start, datetime.datetime):
        timestamp_ms_of(start)
    elif isinstance(start, Mapping):
        for place, offset in start.items():
            if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset <= INT64_MAX:
                raise InvalidRequestError(
                    f"start={{{place!r}: {offset!r}}}: an offset is an integer from 0 to {INT64_MAX}"
                )
            if type(place) is not int and not is_place(place):
                raise InvalidRequestError(
                    f"start={{{place!r}: {offset!r}}}: the key is a partition's number, or (topic, number)"
                )
    elif start not in ("earliest", "latest"):
        raise InvalidRequestError(
            f"start={start!r} is not known; use 'earliest', 'latest', an aware datetime "
            "or {partition: offset}"
        )
    return start


def inside(log: PartitionLog, offset: int) -> int:
    """*offset* if *log* has it, or ends there; else the log start offset, or the high watermark."""
    offsets = log.offsets()
    if offset > offsets.log_end_offset:
        return offsets.high_watermark
    return max(offset, offsets.log_start_offset)


class StartPolicy:
    """The start= argument of one consumer."""

    def __init__(self, start: Start, existing: Collection[TopicPartition], isolation: Isolation) -> None:
        """*existing* are the partitions that there were when the consumer was made."""
        self._start = start
        self._isolation = isolation
        self._existing = existing

    @property
    def is_log_start(self) -> bool:
        """Whether every partition is read from its beginning, whenever one asks."""
        return self._start == "earliest"

    def offset(self, log: PartitionLog) -> int:
        """The offset to begin at in *log*, as of now."""
        wanted = self._wanted(log)
        offset = inside(log, wanted)
        if offset != wanted:
            logger.warning(
                "start= is offset %d of %s-%d, which is not there: it begins at %d",
                wanted,
                log.topic,
                log.partition,
                offset,
            )
        return offset

    def _wanted(self, log: PartitionLog) -> int:
        start, place = self._start, (log.topic, log.partition)
        offsets = log.offsets()
        if isinstance(start, datetime.datetime):
            found = log.offset_for_timestamp(timestamp_ms_of(start))
            return offsets.visible_end(self._isolation) if found is None else found
        if isinstance(start, Mapping):
            by_place: dict[object, int] = dict(start.items())
            return by_place.get(place, by_place.get(log.partition, offsets.log_start_offset))
        if start == "latest" and place in self._existing:
            return offsets.visible_end(self._isolation)
        return offsets.log_start_offset
