"""The id that a sender gave a message, by which a second one is known: the header ``logbroker.message-id``.

Its value is UTF-8 text of 1 to 200 bytes. Anything else, as a client of another kind may have written, is no
id, and of several the first sound one counts.
"""

from __future__ import annotations

from .record import HeaderPairs, Record

MESSAGE_ID_HEADER = "logbroker.message-id"
MAX_MESSAGE_ID_BYTES = 200


def message_id_in(headers: HeaderPairs) -> bytes | None:
    """The id among *headers* as its UTF-8 bytes; None without one."""
    for name, value in headers:
        if name == MESSAGE_ID_HEADER and value is not None and 0 < len(value) <= MAX_MESSAGE_ID_BYTES:
            try:
                value.decode()
            except UnicodeDecodeError:
                continue
            return value
    return None


def message_id_of(record: Record) -> str | None:
    """The id of *record*; None without one."""
    found = message_id_in(record.header_pairs)
    return None if found is None else found.decode()
