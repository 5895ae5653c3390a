"""The history checker of the server: what real clients were told, held against what the log holds in the end.

    operations                                  what a client writes down: before each thing it does, and after
    checker, poll_checks, offset_checks,        pure: a history and the final reads to what is wrong (``findings``)
    findings
    clients, producers, consumers,              the processes: librdkafka's producers and consumers, and the library's
    transformer, embedded
    proxy                                       the network between them and the server
    nemesis                                     what is done to all of them, and when
    rounds                                      one round, from an empty directory to its findings
    broken_servers                              servers that do not keep their promises, to be found out

It goes about it as Jepsen's Kafka workload does (jepsen.tests.kafka).
"""

from __future__ import annotations

from collections.abc import Iterator

from ..proof import Row, Scope


def run(scope: Scope) -> Iterator[Row]:
    """A row for each kind of fault."""
    from .campaign import campaign  # the clients import this package, and need none of that

    return campaign(scope)
