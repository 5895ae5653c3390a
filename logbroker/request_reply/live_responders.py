"""Which live processes respond to a topic: volatile facts of the view.

    key                                              value   life
    responder NUL <topic> NUL <process id>/<n>       1       until the responder stops; gone with the view

The entry of a process that died stays until somebody looks at it: whether its process is alive is known exactly, by
its lock, at the moment of the look. Responders of other kinds (a client over the network, a plain queue consumer) are
not here, which is why a requester may be told to send all the same.
"""

from __future__ import annotations

from logbroker_storage.data_directory import DataDirectory

PREFIX = b"responder\0"
THERE = b"1"


def _prefix(topic: str) -> bytes:
    return PREFIX + topic.encode() + b"\0"


def announce(directory: DataDirectory, topic: str, member: str) -> None:
    """Say that *member* (``<process id>/<n>``) of this process responds to *topic*."""
    directory.view.volatile.update(_prefix(topic) + member.encode(), lambda _: THERE)


def withdraw(directory: DataDirectory, topic: str, member: str) -> None:
    """The opposite of ``announce``."""
    directory.view.volatile.update(_prefix(topic) + member.encode(), lambda _: None)


def is_anybody_there(directory: DataDirectory, topic: str) -> bool:
    """Whether a live process responds to *topic*; the dead are forgotten on the way."""
    prefix = _prefix(topic)
    for key, _ in directory.view.volatile.items(prefix):
        process_id = key[len(prefix) :].partition(b"/")[0].decode()
        if directory.process_alive(process_id):
            return True
        directory.view.volatile.update(key, lambda _: None)
    return False
