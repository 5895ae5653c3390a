"""Receipt handles: a message in somebody's hands, as text that another process can settle it by.

    topic:partition:offset:owner        for example  jobs:0:17:~5f0c2a91d3b47e68

To users it is opaque. It is good for as long as the owner holds the message: who settles by it changes nothing else.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from logbroker_storage.errors import InvalidRequestError

_HANDLE = re.compile(r"([A-Za-z0-9._-]{1,249}):(\d{1,10}):(\d{1,19}):(\S{1,200})", re.ASCII)


class ReceiptHandle(NamedTuple):
    """Which message, and in whose hands."""

    topic: str
    partition: int
    offset: int
    owner: str

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}:{self.owner}"

    @classmethod
    def parse(cls, text: str) -> ReceiptHandle:
        """The other way.

        Raises:
            InvalidRequestError: it is none.
        """
        found = _HANDLE.fullmatch(text)
        if found is None:
            raise InvalidRequestError(
                f"{text!r} is no receipt handle; give what `logbroker queue receive --hold` printed, or "
                "message.handle"
            )
        return cls(found[1], int(found[2]), int(found[3]), found[4])
