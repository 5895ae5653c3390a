"""The command line: one file a command. Only ``app`` is imported from outside."""
