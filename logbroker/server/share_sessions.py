"""Share sessions (KIP-932): which partitions a member fetches from, so that its requests tell changes only.

    epoch   ShareFetch                                       ShareAcknowledge
     0      begins a session; one that was there is closed   INVALID_SHARE_SESSION_EPOCH
     n      goes on; n follows the last epoch                the same
    -1      acknowledges, then closes                        the same

A session that is not there is SHARE_SESSION_NOT_FOUND, a wrong epoch INVALID_SHARE_SESSION_EPOCH: the client then
begins anew. There is one session for each member of each group, and it lives no longer than its connection. With as
many as there may be, no other begins: SHARE_SESSION_LIMIT_REACHED.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import count

from kio.schema.errors import ErrorCode

from .consumer_messages import Place
from .error_codes import RefusedError

MAX_SESSIONS = 2000
FINAL_EPOCH, INITIAL_EPOCH = -1, 0
LAST_EPOCH = (1 << 31) - 1


class ShareSession:
    """The partitions of one member, those first that were served longest ago.

    ``is_closed`` is read by threads that acquire for the session: once it is set, they give back what they got.
    ``held_in`` is added to before they do.
    """

    def __init__(
        self, group_id: str, member_id: str, number: int, *, subscription_id: str, connection: object
    ) -> None:
        self.group_id = group_id
        self.subscription_id = subscription_id  # what the group is, whatever it is called by the end
        self.member_id = member_id
        self.hands = (
            f"{member_id}/{number}"  # whose messages these are: never those of the member's next session
        )
        self.connection = connection
        self.epoch = INITIAL_EPOCH
        self.places: OrderedDict[Place, None] = OrderedDict()
        self.is_closed = False
        self.when_closed: set[Callable[[], None]] = set()  # what wakes the fetches that wait
        self.held_in: set[tuple[str, int]] = set()  # topic and partition of all that it may hold something in

    @property
    def key(self) -> tuple[str, str]:
        return self.group_id, self.member_id

    def change(self, places: Iterable[Place], forgotten: Iterable[Place]) -> None:
        for place in forgotten:
            self.places.pop(place, None)
        for place in places:
            self.places.setdefault(place)

    def served(self, places: Iterable[Place]) -> None:
        for place in places:
            if place in self.places:
                self.places.move_to_end(place)


class ShareSessions:
    """The sessions of a server."""

    def __init__(self, *, most: int = MAX_SESSIONS) -> None:
        self._most = most
        self._numbers = count(1)
        self._sessions: dict[tuple[str, str], ShareSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(
        self, group_id: str, member_id: str, connection: object, *, subscription_id: str = ""
    ) -> ShareSession:
        """A new session, in place of none: the caller has closed the one that there was.

        Raises:
            RefusedError: there are too many.
        """
        assert (group_id, member_id) not in self._sessions
        if len(self._sessions) >= self._most:
            raise RefusedError(ErrorCode.share_session_limit_reached)
        session = ShareSession(
            group_id,
            member_id,
            next(self._numbers),
            subscription_id=subscription_id,
            connection=connection,
        )
        self._sessions[session.key] = session
        session.epoch = _next_epoch(INITIAL_EPOCH)
        return session

    def go_on(self, group_id: str, member_id: str, epoch: int, connection: object) -> ShareSession:
        """The session that a request with *epoch*, which is not the initial one, belongs to.

        Raises:
            RefusedError: there is none, or another epoch is due.
        """
        session = self._sessions.get((group_id, member_id))
        if session is None:
            raise RefusedError(ErrorCode.share_session_not_found)
        if epoch != FINAL_EPOCH:
            if epoch != session.epoch:
                raise RefusedError(
                    ErrorCode.invalid_share_session_epoch, f"the epoch is {session.epoch}, not {epoch}"
                )
            session.epoch = _next_epoch(session.epoch)
        session.connection = connection
        return session

    def close(self, group_id: str, member_id: str) -> ShareSession | None:
        """Forget a member's session, and return it, if there is one."""
        session = self._sessions.pop((group_id, member_id), None)
        if session is not None:
            session.is_closed = True
            for wake in session.when_closed:
                wake()
        return session

    def get(self, group_id: str, member_id: str) -> ShareSession | None:
        return self._sessions.get((group_id, member_id))

    def of_connection(self, connection: object) -> list[ShareSession]:
        return [session for session in self._sessions.values() if session.connection is connection]

    def all(self) -> list[ShareSession]:
        return list(self._sessions.values())


def _next_epoch(epoch: int) -> int:
    return 1 if epoch == LAST_EPOCH else epoch + 1
