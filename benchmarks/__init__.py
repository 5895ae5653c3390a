"""How fast the broker is beside its peers in the same run: ``pytest benchmarks``, or ``python -m benchmarks.report``."""
