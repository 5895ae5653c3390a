"""Does what an operation costs grow with what the directory already holds?

    python -m benchmarks.growth                  10⁴ … 10⁸ records, 1 … 1,000 partitions, 1 … 1,000 groups
    python -m benchmarks.growth --quick          the same up to 10⁶ records
    python -m benchmarks.growth --work groups    only works whose name has the word in it

A *work* (``history``, ``partitions``, ``groups``) makes a directory larger step by step, each size by going on from
the one before, and measures the same operations at each. Whatever concerns memory or opening, and most of the rest, is
measured in a new process. Tables, JSON and log-log plots (where matplotlib is installed: the extra ``compare`` brings
it); the last column of a table says how a figure grew: ``0`` is flat, ``1`` is as fast as the size.

What should be flat: all of ``history``. Over partitions and groups, whatever is about one of them, or about a record;
what is about all of them (opening, a commit of every partition, a pass of the cleaner) may grow as fast as they do.
"""
