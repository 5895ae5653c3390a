"""The offline inspector: explains and verifies a log directory; never opens or recovers it, writes only to repair."""
