"""How a request fails, as the requester sees it.

LogbrokerError
├── NoRespondersError      nobody is there to answer: start a responder, or wait for one
├── RequestTimeoutError    no reply in time: it may have been worked on, or still be
└── ResponderError         the responder failed, and says why
"""

from __future__ import annotations

from logbroker_storage.errors import LogbrokerError

from .headers import Failure


class NoRespondersError(LogbrokerError):
    """No live process responds to the topic; nothing was sent.

    Attributes:
        topic: of the request.
        reason: what is wrong, without what to do about it.
    """

    def __init__(self, topic: str, *, near: str | None = None) -> None:
        self.topic = topic
        hint = "" if near is None else f" (did you mean {near!r}?)"
        self.reason = f"nobody responds to {topic!r}{hint}"
        super().__init__(
            f"{self.reason}: start a responder (broker.responder() or `logbroker respond`), or give "
            'if_nobody="wait" to send the request all the same'
        )


class RequestTimeoutError(LogbrokerError):
    """No reply came in time. Whether the request was worked on is unknown; a late reply is dropped.

    Attributes:
        topic: of the request.
        timeout: how many seconds it waited.
        reason: what happened, without what to do about it.
    """

    def __init__(self, topic: str, timeout: float) -> None:
        self.topic = topic
        self.timeout = timeout
        self.reason = (
            f"no reply to a request on {topic!r} within {timeout:g} seconds; the request has expired, but may have "
            "been worked on"
        )
        super().__init__(f"{self.reason}. Give it a longer timeout=, or more responders")


class ResponderError(LogbrokerError):
    """The responder answered that it failed.

    Attributes:
        topic: of the request.
        error: what it says of the failure, as text.
        error_type: the kind of failure as it calls it, for example "ValueError".
        traceback: where it failed, if it tells (``tracebacks=True``), else None.
    """

    def __init__(self, topic: str, failure: Failure) -> None:
        self.topic = topic
        self.error = failure.error
        self.error_type = failure.error_type
        self.traceback = failure.traceback
        kind = f"{failure.error_type}: " if failure.error_type else ""
        super().__init__(f"the responder of {topic!r} failed: {kind}{failure.error}")
