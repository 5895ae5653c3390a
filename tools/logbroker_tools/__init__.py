"""The offline inspector: explains and verifies a log directory; never opens or recovers it, and only ``repair --write`` locks it."""
