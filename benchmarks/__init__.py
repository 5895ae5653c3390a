"""How fast the broker is beside its peers in the same run: ``pytest benchmarks``, then ``python -m benchmarks.report``."""
