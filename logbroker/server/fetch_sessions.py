"""Incremental fetch sessions (KIP-227): what a client fetches is remembered, so that it sends changes only.

    session id   epoch   the request                                   answer
    0            -1, 0   names all partitions; with 0 a session begins  all of them
    s            0       closes s, and begins another with 0's meaning  all of them
    s            n       changes session s; n follows the last epoch    those with news
    s            -1      closes s                                       all it names

A session that is not there is FETCH_SESSION_ID_NOT_FOUND, a wrong epoch INVALID_FETCH_SESSION_EPOCH: the client then
begins anew. So it does after FETCH_SESSION_TOPIC_ID_ERROR: topics have names up to version 12 and ids from 13 on, and a
session keeps to one of both. Java goes from one to the other as it comes to know ids, or a topic without one is added.
The oldest session makes place for a new one.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import msgspec
from kio.schema.errors import ErrorCode

from .error_codes import RefusedError

MAX_SESSIONS = 1000
NO_SESSION = 0
FINAL_EPOCH, INITIAL_EPOCH = -1, 0
LAST_EPOCH = (1 << 31) - 1

Key = tuple[Hashable, int]  # a topic as the request names it, and a partition


class FetchWish(msgspec.Struct, frozen=True):
    """What is wanted of one partition. ``topic`` is the name, or the id from version 13 on."""

    topic: Hashable
    partition: int
    offset: int
    max_bytes: int
    leader_epoch: int = -1

    @property
    def key(self) -> Key:
        return self.topic, self.partition


class Reported(msgspec.Struct, frozen=True):
    """What an answer of a session last said of a partition, besides records."""

    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    error: ErrorCode


class FetchSession:
    """The partitions of one client, in its order."""

    def __init__(self, session_id: int, *, named_by_id: bool) -> None:
        self.session_id = session_id
        self.named_by_id = named_by_id
        self.epoch = INITIAL_EPOCH
        self.wishes: OrderedDict[Key, FetchWish] = OrderedDict()
        self.reported: dict[Key, Reported] = {}

    def change(self, wishes: Sequence[FetchWish], forgotten: Sequence[Key]) -> None:
        for key in forgotten:
            self.wishes.pop(key, None)
            self.reported.pop(key, None)
        for wish in wishes:
            self.wishes[wish.key] = wish

    def is_news(self, key: Key, report: Reported, *, has_records: bool) -> bool:
        """Whether the answer must tell of the partition; it counts as told."""
        if not has_records and report.error is ErrorCode.none and self.reported.get(key) == report:
            return False
        self.reported[key] = report
        if has_records:
            self.wishes.move_to_end(key)  # who was served goes behind those who were not
        return True


class FetchSessions:
    """The sessions of a server."""

    def __init__(self, *, most: int = MAX_SESSIONS) -> None:
        self._most = most
        self._sessions: OrderedDict[int, FetchSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def session_of(
        self,
        session_id: int,
        epoch: int,
        wishes: Sequence[FetchWish],
        forgotten: Sequence[Key],
        *,
        named_by_id: bool,
    ) -> FetchSession | None:
        """The session that a request belongs to or begins, changed as it says; None without one.

        Raises:
            RefusedError: there is no such session, the epoch is not the one that is due, or the session names topics
                otherwise.
        """
        if epoch in (FINAL_EPOCH, INITIAL_EPOCH):
            if session_id != NO_SESSION:
                self._sessions.pop(session_id, None)
            return None if epoch == FINAL_EPOCH else self._begin(wishes, named_by_id=named_by_id)
        session = self._sessions.get(session_id)
        if session is None:
            raise RefusedError(ErrorCode.fetch_session_id_not_found)
        if epoch != session.epoch:
            raise RefusedError(ErrorCode.invalid_fetch_session_epoch)
        if named_by_id is not session.named_by_id:
            raise RefusedError(ErrorCode.fetch_session_topic_id_error)
        session.epoch = _next_epoch(session.epoch)
        session.change(wishes, forgotten)
        self._sessions.move_to_end(session_id)
        return session

    def _begin(self, wishes: Sequence[FetchWish], *, named_by_id: bool) -> FetchSession | None:
        if not wishes:
            return None
        session_id = NO_SESSION
        while session_id == NO_SESSION or session_id in self._sessions:
            session_id = random.randrange(1, 1 << 31)  # noqa: S311 (no secret: it only has to differ)
        session = self._sessions[session_id] = FetchSession(session_id, named_by_id=named_by_id)
        session.epoch = _next_epoch(INITIAL_EPOCH)
        session.change(wishes, ())
        if len(self._sessions) > self._most:
            self._sessions.popitem(last=False)
        return session


def _next_epoch(epoch: int) -> int:
    return 1 if epoch == LAST_EPOCH else epoch + 1
