"""How fast the broker is beside its peers in the same run: ``pytest benchmarks``; a table: ``benchmarks.report``."""
