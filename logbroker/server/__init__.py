"""The Kafka protocol over a data directory: what ``logbroker serve`` runs.

    frames      bytes of a connection to whole requests               pure
    apis        which APIs and versions there are, and who answers    pure
    replies     values to response messages of any version            pure
    listener    sockets, order of answers, backpressure               asyncio
    node        what handlers share: directory, threads, wake-ups     asyncio
    handlers/   one module a family of requests

The server is a user of the directory like any other process. Blocking work (writes, syncs, the journal) goes to
threads; the event loop only reads the view and files in the page cache.
"""
