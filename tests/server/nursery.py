"""Where servers come from: a process that has imported ``logbroker serve``, has opened nothing, and forks.

A server that is forked here listens after 30 ms of processor time; one that starts Python first needs 400. What
the command does from its arguments on is the same, and so are its deaths. A request on the socket that is this
process's standard input is one message: the arguments, as JSON, with the descriptors that are to be standard output
and standard error.

    request           answer
    [ARGUMENT, …]     the process id of a new server
    PROCESS ID        how it ended, as ``os.waitpid`` says it. Until then its process id is its own

When the socket is closed, whoever had the nursery is gone: every server that is left is killed.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys

import logbroker.cli.commands
import logbroker.server.metrics
import logbroker.server.server  # noqa: F401  (what ``serve`` imports when it is called)
from logbroker.cli.app import main as run_command_line

MESSAGE_BYTES = 1 << 16


def main() -> None:
    """Serve requests; in a server that was forked, be it."""
    requests = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    gc.collect()
    gc.freeze()  # what was imported is shared with all the servers, and stays so
    servers: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 2)
        if not message:
            break
        request = json.loads(message)
        if isinstance(request, int):
            _, answer = os.waitpid(request, 0)
            servers.remove(request)
        else:
            answer = os.fork()
            if answer == 0:
                requests.close()
                for standard, descriptor in zip((1, 2), descriptors, strict=True):
                    os.dup2(descriptor, standard)
                    os.close(descriptor)
                sys.argv[1:] = request
                run_command_line()  # and exit
            servers.add(answer)
            for descriptor in descriptors:
                os.close(descriptor)
        requests.send(json.dumps(answer).encode())
    for server in servers:
        os.kill(server, signal.SIGKILL)


if __name__ == "__main__":
    main()
