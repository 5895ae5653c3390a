"""The offline inspector: explains and verifies a log directory; never opens, recovers or locks it."""
