"""Ports for servers that go and come back."""

from __future__ import annotations

import random
import socket

FIRST, END = 12_000, 30_000
"""Below those that the kernel gives out by itself: for port 0, and to every connection as its own."""


def kept_port() -> int:
    """A free port of loopback, which is free still when its server has been down for a while.

    One of the kernel's may be another's by then. Even the clients' who look for the server: a connection whose own
    port comes to be the one that it goes to is connected to itself.
    """
    while True:
        port = random.randrange(FIRST, END)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
