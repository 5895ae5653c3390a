"""From where to where: a consumer that begins and stops where ``tail`` was told to.

    --from         a partition is read from
    (none)         so that -n (10) records of all partitions together come, by timestamp
    earliest       the log start offset
    latest         the end
    1500, -100     that offset, so many before the end; brought inside the partition
    a time         the first record that is not older; the end when all are
    stored         the group's committed offset, or the log start offset

    stops          without -f   where the partition ended when we began
                   --until      before that offset, or before the first record of that time or later
                   -n           after so many records, of all partitions

With a group the members share the partitions, ``--from`` holds where the group has committed nothing, and
what was printed is committed after it was: a crash prints the last records again (at least once).

A consumer cannot leave a partition out, so records of a partition that is at its stop (or not wanted at
all) are dropped where they come in; with a group the place is taken back before each commit.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from logbroker_storage.errors import CorruptionError, FencedError, InvalidRequestError, OffsetOutOfRangeError
from logbroker_storage.standard_streams import say

from .places import lags, offsets_at, positions, ranges_of
from .positions import Moment, Named, Offset, Position, Shift

if TYPE_CHECKING:
    from ..broker import Broker
    from ..consumer import Consumer
    from ..groups import TopicPartition
    from ..records import Record
    from ..start import Start

logger = logging.getLogger("logbroker.cli")

RECORDS_PER_POLL = 1000
LOOK_S = 1.0  # how often a reading that waits looks whether anybody is still interested
PAUSE_S = 0.1  # how long one that is about to end waits for what is still missing
ASSIGNMENT_S = 5.0  # how long it waits for the group to give it a partition
NO_STOP = 1 << 63
MOST_BACK = 1_000_000  # how many offsets without records the last ones are looked for behind

_place_of = attrgetter("topic", "partition")
_timestamp_of = attrgetter("timestamp_ms")


@dataclass(frozen=True)
class Wanted:
    """What to read."""

    topics: Sequence[str]  # names and patterns
    partition: int | None = None  # only this one of each topic
    start: Position = Named.EARLIEST
    until: Position | None = None
    limit: int | None = None
    follow: bool = False
    timeout_s: float | None = None  # of silence
    group: str | None = None


class Reading:
    """One run over the records that are wanted: iterate over ``batches``, then look at the fields."""

    def __init__(
        self,
        broker: Broker,
        wanted: Wanted,
        *,
        starts: Mapping[TopicPartition, int] | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Find the partitions, and where to begin and stop in them.

        Args:
            broker: an open one.
            wanted: what to read.
            starts: begin there, whatever ``wanted.start`` says.
            is_wanted: asked about once a second while there is nothing to read; False ends the reading.

        Raises:
            TopicNotFoundError: a topic, or its partition, is not there.
        """
        self.records = 0  # given out
        self.timed_out = False
        self.was_paused = False  # the group's subscription is, so that nothing more comes
        self.damaged = False
        self._wanted = wanted
        self._is_wanted = is_wanted
        self.found = ranges_of(broker, wanted.topics, wanted.partition)
        self._broker = broker
        self._stops, self._other_stop = self._first_stops()
        self._deadline_ms = self._future_until_ms()
        self._starts = self._resolved_starts() if starts is None else starts
        self._finished = False
        self._was_empty = False
        self._at_a_stop = False
        self._began = self._heard = time.monotonic()

    # Where to begin and to stop ---------------------------------------------------------------------

    def _future_until_ms(self) -> int | None:
        """With -f: until when records are followed, if that is still to come."""
        until = self._wanted.until
        if isinstance(until, Moment) and self._wanted.follow and until.time > _now():
            return int(until.time.timestamp() * 1000)
        return None

    def _first_stops(self) -> tuple[dict[TopicPartition, int], int]:
        """The offset to stop before, of each partition there is and of those that are created later."""
        wanted, stops, other = self._wanted, dict.fromkeys(self.found, NO_STOP), NO_STOP
        if isinstance(wanted.until, Offset) and wanted.follow:
            other = wanted.until.offset  # it need not have been written yet
            stops = dict.fromkeys(self.found, other)
        elif wanted.until is not None and self._future_until_ms() is None:
            stops, other = offsets_at(self._broker, self.found, wanted.until), 0
        elif not wanted.follow:
            stops, other = {place: limits.end for place, limits in self.found.items()}, 0
        unwanted = [place for place in self.found if wanted.partition not in (None, place[1])]
        return {**stops, **dict.fromkeys(unwanted, 0)}, other

    def _resolved_starts(self) -> Mapping[TopicPartition, int] | None:
        """The offsets to begin at, where the consumer does not know what ``start`` means."""
        start = self._wanted.start
        if not isinstance(start, Offset | Shift):
            return None
        if isinstance(start, Offset):
            for (topic, partition), limits in self.found.items():
                if self._stops[topic, partition] and limits.clamp(start.offset) != start.offset:
                    say(
                        f"{topic}-{partition} has the offsets from {limits.start} to {limits.end}, not {start.offset}"
                    )
        return offsets_at(self._broker, self.found, start)

    def _open(self) -> Consumer:
        consumer = self._broker.consumer(
            list(self._wanted.topics), group=self._wanted.group, start=self._start(), delivery="manual"
        )
        if self._wanted.group is None:
            for place in [place for place, stop in self._stops.items() if not stop]:
                consumer.seek(place, self.found[place].end)
        return consumer

    def begin_before_stops(self, count: int) -> set[TopicPartition]:
        """Begin *count* offsets before each stop; the partitions in which that is at the very start."""
        stops = self.ends()
        self._starts = {
            place: max(limits.start, stops[place] - count) for place, limits in self.found.items()
        }
        return {place for place, limits in self.found.items() if stops[place] - count <= limits.start}

    def ends(self) -> dict[TopicPartition, int]:
        """Where it stops in each partition there is; of one that goes on: where that ends now."""
        return {place: limits.clamp(self._stops[place]) for place, limits in self.found.items()}

    def _start(self) -> Start:
        if self._starts:
            return self._starts
        start = self._wanted.start
        if isinstance(start, Moment):
            return start.time
        return "latest" if start is Named.LATEST else "earliest"

    # Reading ----------------------------------------------------------------------------------------

    def batches(self) -> Iterator[list[Record]]:
        """The records that are wanted, some at a time. Asking for the next says that these are printed."""
        with self._open() as consumer:
            self._look(consumer)
            while not self._finished:
                records = self._poll(consumer)
                kept, left_out = self._keep(records)
                if kept:
                    self.records += len(kept)
                    self._heard = time.monotonic()
                    yield kept
                if records and self._wanted.group is not None:
                    self._commit(consumer, left_out)
                self._was_empty = not records
                if not records or left_out or self._at_a_stop:
                    self._look(consumer)
                if self.records == self._wanted.limit:
                    self._finished = True

    def _poll(self, consumer: Consumer) -> list[Record]:
        limit = self._wanted.limit
        count = RECORDS_PER_POLL if limit is None else min(limit - self.records, RECORDS_PER_POLL)
        try:
            return consumer.poll(count, timeout=self._patience_s())
        except CorruptionError as error:
            say(f"logbroker: {error}")
            self.damaged = True
            consumer.seek((error.topic, error.partition), error.end_offset)
        except OffsetOutOfRangeError as error:
            say(
                f"logbroker: {error.topic}-{error.partition} was deleted up to offset {error.start_offset} meanwhile"
            )
            consumer.seek((error.topic, error.partition), error.start_offset)
        return []

    def _patience_s(self) -> float:
        """How long the next poll may wait."""
        if not self._wanted.follow:
            return PAUSE_S if self._was_empty or self._wanted.group is not None else 0.0
        patience_s = LOOK_S
        if self._wanted.timeout_s is not None:
            patience_s = min(patience_s, self._heard + self._wanted.timeout_s - time.monotonic())
        if self._deadline_ms is not None:
            patience_s = min(patience_s, self._deadline_ms / 1000 - _now().timestamp())
        return max(0.0, patience_s)

    def _keep(self, records: list[Record]) -> tuple[list[Record], dict[TopicPartition, int]]:
        """Those of *records* that are before their stops, and where the others begin."""
        self._at_a_stop = False
        if len(self._stops) == 1 and self._deadline_ms is None and records:
            ((place, stop),) = self._stops.items()
            last = records[-1]
            if _place_of(last) == place == _place_of(records[0]) and last.offset < stop:
                self._at_a_stop = last.offset + 1 == stop
                return records, {}
        kept: list[Record] = []
        left_out: dict[TopicPartition, int] = {}
        for place, group in groupby(records, _place_of):
            run = list(group)
            stop = self._stop_in(place, run)
            taken = run if run[-1].offset < stop else [record for record in run if record.offset < stop]
            kept += taken
            self._at_a_stop |= run[-1].offset + 1 >= stop
            if len(taken) < len(run):
                left_out[place] = min(left_out.get(place, NO_STOP), run[len(taken)].offset)
        return kept, left_out

    def _stop_in(self, place: TopicPartition, run: list[Record]) -> int:
        """The stop of a partition; with --until in the future a record may show that it is reached."""
        stop = self._stops.get(place, self._other_stop)
        if self._deadline_ms is not None and stop == NO_STOP:
            late = [record.offset for record in run if record.timestamp_ms >= self._deadline_ms]
            if late:
                stop = self._stops[place] = late[0]
        return stop

    def _commit(self, consumer: Consumer, left_out: Mapping[TopicPartition, int]) -> None:
        try:
            for place, offset in left_out.items():
                consumer.seek(place, offset)
            consumer.commit()
        except (FencedError, InvalidRequestError) as error:
            logger.warning("partitions moved to another member, which may read some records again: %s", error)

    # Ending -----------------------------------------------------------------------------------------

    def _look(self, consumer: Consumer) -> None:
        """Find out whether there is an end to it."""
        now = time.monotonic()
        timeout_s = self._wanted.timeout_s
        if self._deadline_ms is not None and _now().timestamp() * 1000 >= self._deadline_ms:
            self._deadline_ms = None
            self._stop_at_the_ends()
        if timeout_s is not None and self._was_empty and now - self._heard >= timeout_s:
            self.timed_out = self._finished = True
        elif self._has_everything(consumer, now) or not self._is_wanted():
            self._finished = True
        elif self._was_empty and not self._wanted.follow and self._is_paused():
            self.was_paused = self._finished = True

    def _is_paused(self) -> bool:
        group = self._wanted.group
        return group in self._broker.subscriptions() and self._broker.subscription(group).is_paused

    def _stop_at_the_ends(self) -> None:
        """The time of --until has come: what is there now is all there will be."""
        for place, limits in ranges_of(self._broker, self._wanted.topics).items():
            self._stops[place] = min(limits.end, self._stops.get(place, self._other_stop))
        self._other_stop = 0

    def _has_everything(self, consumer: Consumer, now: float) -> bool:
        if self._wanted.follow and self._other_stop == NO_STOP:
            return False
        at = positions(consumer)
        if not at:
            return not self._stops or now - self._began >= ASSIGNMENT_S
        behind = [place for place, offset in at.items() if offset < self._stops.get(place, self._other_stop)]
        if not behind or self._wanted.follow:
            return not behind
        # What is not there any more (retention, a failed sync) is not waited for.
        lag = lags(consumer)
        return all(not lag.get(place) for place in behind)


def last_records(broker: Broker, wanted: Wanted, count: int) -> tuple[list[Record], Reading]:
    """The last *count* records of all partitions together, by timestamp, and the reading that found them.

    Offsets are not all records (compaction leaves gaps, some have expired), so it goes further back until
    there are enough, or has gone ``MOST_BACK`` offsets for nothing. Holds *count* records a partition.
    """
    back = count
    while True:
        reading = Reading(broker, wanted)
        at_the_start = reading.begin_before_stops(back)
        held: dict[TopicPartition, deque[Record]] = {place: deque(maxlen=count) for place in reading.found}
        for records in reading.batches():
            for place, run in groupby(records, _place_of):
                held[place].extend(run)
        if back > MOST_BACK + count or all(
            place in at_the_start or len(found) == count for place, found in held.items()
        ):
            return list(merge(*held.values(), key=_timestamp_of))[-count:], reading
        back *= 8


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
