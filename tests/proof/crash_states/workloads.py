"""What the programs do whose power is cut.

The scripts together visit every place where the product syncs a file or a directory; each has few topics, so
that a state is opened quickly. A random program does the same things in any order.
"""

from __future__ import annotations

from collections.abc import Callable

from .program import DEAD_LETTERS, Program

Workload = Callable[[Program], None]

LARGE = bytes(range(256)) * 20  # more than a page of 4096 bytes


def records(program: Program) -> None:
    """Producers, one after the other and interleaved, in two partitions; rolls; a group; a clean close between."""
    program.open()
    program.create("a", 2, segment_bytes=900, index_interval_bytes=100)
    program.append("a", 0, "a", [b"a0", b"a1"])
    program.append("a", 0, "b", [b"b0"])
    program.append("a", 1, "a", [b"c0"], sync=False)
    program.append("a", 1, "b", [b"d0", b"d1"])
    program.append("a", 0, "b", [LARGE[:700], b"b2"])
    program.append("a", 0, "a", [b"a2"], sync=False)
    program.append("a", 0, "b", [LARGE], sync=False)
    program.roll("a", 0)
    program.append("a", 0, "a", [b"a3"], sync=False)
    program.checkpoint()
    program.roll("a", 0)
    program.append("a", 0, "a", [b"a4"])
    program.send("a", 1, b"e0", b"e1")
    program.consume("g", "a", at_most=3)
    for number in range(6):
        program.append("a", 1, "a", [b"%d" % number * 100], sync=number % 2 > 0)
    program.checkpoint()
    program.append("a", 0, "b", [b"b3"])
    program.close()
    program.open()
    program.append("a", 1, "a", [b"last"])
    program.consume("g", "a")
    program.close()


def transactions(program: Program) -> None:
    """Transactions over two partitions, with offsets, committed and aborted, beside a plain producer."""
    program.open()
    program.create("a", 2, segment_bytes=600)
    program.append("a", 0, "a", [b"a0", b"a1"])
    program.transaction("t", [("a", 0, [b"t0"]), ("a", 1, [b"t1", b"t2"])])
    program.transaction("t", [("a", 0, [b"x0"]), ("a", 1, [b"x1"])], commit=False)
    program.append("a", 0, "a", [b"a5"])
    program.transaction("t", [("a", 1, [b"t3"])], offsets=[("g", "a")])
    program.transaction("u", [("a", 0, [b"x2" * 300])], commit=False)
    program.consume("h", "a")
    program.transaction("u", [("a", 0, [b"u0"]), ("a", 1, [b"u1"])], offsets=[("g", "a")], commit=False)
    program.transaction("t", [("a", 0, [b"t4" * 200]), ("a", 1, [b"t5"])])
    program.close()


def queues(program: Program) -> None:
    """A queue with dead letters: received, accepted, rejected, released, accepted in a transaction."""
    program.open()
    program.create("jobs", segment_bytes=400)
    program.create(DEAD_LETTERS)
    program.subscribe("workers", "jobs")
    program.append("jobs", 0, "a", [b"j%d" % number for number in range(6)])
    first, second, third, fourth, fifth = program.receive("workers", 5)
    program.accept(first)
    program.reject(second)
    program.release(third)
    program.transaction("t", [("jobs", 0, [b"more"])], accept=[fourth])
    program.append("jobs", 0, "b", [b"j6" * 80])
    program.accept(fifth, *program.receive("workers", 2))
    program.reject(*program.receive("workers", 1))
    program.transaction("t", [("jobs", 0, [b"never"])], accept=program.receive("workers", 1), commit=False)
    program.close()


def cleaning(program: Program) -> None:
    """Retention, compaction, deletion of records and compaction of the journal."""
    program.open()
    program.create("old", segment_bytes=300, retention_bytes=400)
    program.create("kept", segment_bytes=400, cleanup_policy="compact", min_cleanable_dirty_ratio=0.01)
    program.append("old", 0, "b", [b"first" * 20])
    for number in range(4):
        program.append("old", 0, "a", [b"%d" % number * 150])
        program.append(
            "kept", 0, "a", [(b"k%d" % (number % 2), b"%d" % number * 120), (b"only", b"%d" % number)]
        )
    program.transaction("t", [("kept", 0, [b"t"])], commit=False)
    program.clean(retention=[("old", 0)], compaction=[("kept", 0)])
    program.append("old", 0, "a", [b"behind"])
    program.append("kept", 0, "b", [(b"k0", b"newest")])
    program.compact_journal()
    program.append("kept", 0, "b", [(b"k1", b"n" * 300)])
    program.clean(retention=[("old", 0)], compaction=[("kept", 0)])
    program.delete_records("old", 0, 5)
    program.clean()
    program.close()


def topics(program: Program) -> None:
    """Topics are made, get partitions, are deleted and made again."""
    program.open()
    program.create("gone", 2)
    program.append("gone", 1, "a", [b"gone"])
    program.consume("g", "gone")
    program.checkpoint()
    program.delete("gone")
    program.create("gone")
    program.append("gone", 0, "a", [b"come"])
    program.add_partitions("gone", 2)
    program.append("gone", 1, "a", [b"added"])
    program.delete("gone")
    program.create("other")
    program.append("other", 0, "a", [b"o"])
    program.compact_journal()
    program.close()


SCRIPTS: tuple[Workload, ...] = (records, transactions, queues, cleaning, topics)


def recovery(program: Program) -> None:
    """What recovery does after a power cut, itself cut off; and what is written after it."""
    program.recover()
    for name, partitions in program.topics().items():
        program.append(name, partitions - 1, "after", [b"after", b"it"])
    program.close()
