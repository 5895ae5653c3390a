"""The contract of docs/durability.md, proven: each line of it is tried until it would break, and counted.

    python -m tests.proof                      every proof, bounded, as a table
    python -m tests.proof crash-states         one of them
    python -m tests.proof kills --long         its long form
    python -m tests.proof kills --seed 7       what was random is repeated

Every proof is one module (or package) with a function ``run(scope)`` that yields a row as each of its tests
is through, and raises AssertionError where the product broke its promise. The same functions, bounded, are
the tests ``test_*.py`` beside them, which CI runs.
"""
