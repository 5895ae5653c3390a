"""The storage engine of logbroker: bytes, files, locks and the shared view. Knows no groups and no sockets."""
