"""Members of a classic group that wait for the answer to a join or a sync.

The answer is owed to the *token* that the request came with. Replies are gathered until the caller of the group
takes them all, which it does after every call.

Invariants: a token is answered at most once; a member waits in a join and in a sync for one token at a time.
"""

from __future__ import annotations

from typing import Final

from .classic_messages import Delivery, JoinReply, SyncReply

_UNWANTED: Final = object()  # stands for the token of a request whose connection is gone


class Waits:
    """Who waits, for what, and what was answered since the last ``taken``."""

    def __init__(self) -> None:
        self.joining: dict[str, object] = {}  # member id -> token
        self.syncing: dict[str, object] = {}  # member id -> token
        self._outbox: list[Delivery] = []

    def __contains__(self, member_id: str) -> bool:
        return member_id in self.joining or member_id in self.syncing

    def reply(self, token: object, reply: JoinReply | SyncReply) -> None:
        """Answer a request, which does not wait (any more)."""
        if token is not _UNWANTED:
            self._outbox.append(Delivery(token, reply))

    def answer_join(self, member_id: str, reply: JoinReply) -> None:
        """Answer the member's join, if it waits in one."""
        if member_id in self.joining:
            self.reply(self.joining.pop(member_id), reply)

    def answer_sync(self, member_id: str, reply: SyncReply) -> bool:
        """Answer the member's sync, if it waits in one; whether it did."""
        if member_id not in self.syncing:
            return False
        self.reply(self.syncing.pop(member_id), reply)
        return True

    def drop(self, token: object) -> None:
        """Nobody wants this answer any more; its member waits on."""
        for waiting in (self.joining, self.syncing):
            for member_id, other in waiting.items():
                if other == token:
                    waiting[member_id] = _UNWANTED

    def taken(self) -> list[Delivery]:
        """What is to be sent now."""
        deliveries, self._outbox = self._outbox, []
        return deliveries
