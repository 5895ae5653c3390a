"""What must hold of a queue's rows after every transaction, found out from their bytes alone."""

from __future__ import annotations

from collections import defaultdict

from logbroker.queues.rows import (
    BLOCK_OFFSETS,
    COUNT,
    ENTRIES,
    HEAD,
    HEAD_KEY,
    KEYS,
    NO_KEY,
    NUMBER,
    Run,
    State,
    decode_run,
    index_key,
    tried_key,
)
from logbroker_storage.testing import MemoryRows


def inconsistencies(rows: MemoryRows) -> list[str]:
    """Every rule that *rows* break, in words; none: all is well."""
    table = rows.snapshot()
    start_offset, next_offset = HEAD.unpack(table.pop(HEAD_KEY))
    runs = [decode_run(key, value) for key, value in sorted(table.items()) if key[:1] == ENTRIES]
    locks = {key[1:]: value for key, value in table.items() if key[:1] == KEYS}
    done = {NUMBER.unpack(key[1:])[0]: value for key, value in table.items() if key[:1] == b"d"}
    indexed = {key for key in table if key[:1] not in (ENTRIES, KEYS, b"d")}
    expected = {index_key(run) for run in runs} | {tried_key(run.first) for run in runs if run.lasts}
    return [
        *_of_coverage(runs, done, start_offset, next_offset),
        *_of_blocks(done, start_offset, next_offset),
        *[f"no index has {key!r}" for key in expected - indexed],
        *[f"index row {key!r} is of no run" for key in indexed - expected],
        *_of_keys(runs, locks),
    ]


def _of_coverage(runs: list[Run], done: dict[int, bytes], start_offset: int, next_offset: int) -> list[str]:
    """Each offset is done, or in exactly one run."""
    found: list[str] = []
    covered: set[int] = set()
    for run in runs:
        offsets = set(range(run.first, run.last + 1))
        if not offsets:
            found.append(f"{run} is empty")
        if not start_offset <= run.first <= run.last < next_offset:
            found.append(f"{run} is not in [{start_offset}, {next_offset})")
        if offsets & covered:
            found.append(f"{run} overlaps another")
        if run.order_key != NO_KEY and len(offsets) != 1:
            found.append(f"{run} has an order key and more than one message")
        if bool(run.owner) != (run.state in (State.ACQUIRED, State.BURYING, State.ARRANGING)):
            found.append(f"{run} is owned, or is not, against its state")
        covered |= offsets
    for offset in range(start_offset, next_offset):
        is_done = _is_done(done, offset)
        if is_done == (offset in covered):
            found.append(f"{offset} is {'done and in a run' if is_done else 'neither done nor in a run'}")
    if start_offset < next_offset and _is_done(done, start_offset):
        found.append(f"the queue begins with {start_offset}, which is done")
    return found


def _of_blocks(done: dict[int, bytes], start_offset: int, next_offset: int) -> list[str]:
    found = [f"block {block} is all behind" for block in done if block < start_offset // BLOCK_OFFSETS]
    for block, value in done.items():
        end = block * BLOCK_OFFSETS + int.from_bytes(value, "little").bit_length()
        if value and end > next_offset:
            found.append(f"block {block} calls done what nobody ever had: {end}")
    return found


def _is_done(done: dict[int, bytes], offset: int) -> bool:
    block, at = divmod(offset, BLOCK_OFFSETS)
    return bool(int.from_bytes(done.get(block, b""), "little") >> at & 1)


def _of_keys(runs: list[Run], locks: dict[bytes, bytes]) -> list[str]:
    """Of each key: either some are in one hand, or exactly one is READY, and it is the first; the others wait."""
    found: list[str] = []
    of_key: dict[bytes, dict[State, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.order_key != NO_KEY:
            of_key[run.order_key][run.state].append(run)
    for key, by_state in of_key.items():
        held, ready, waiting = (by_state[state] for state in (State.ACQUIRED, State.READY, State.WAITING))
        owners = {run.owner for run in held}
        if len(owners) > 1:
            found.append(f"{key!r} is in the hands of {sorted(owners)}")
        if held and ready:
            found.append(f"{key!r} is in somebody's hands, and READY")
        if len(ready) > 1:
            found.append(f"{key!r} is READY {len(ready)} times")
        if waiting and not held and not ready:
            found.append(f"{key!r} waits for nobody")
        if ready and waiting and waiting[0].first < ready[0].first:
            found.append(f"{key!r} overtakes: {ready[0].first} is READY before {waiting[0].first}")
        if held or ready:
            ready_offset = ready[0].first if ready else 0
            expected = COUNT.pack(len(held)) + (held[0].owner.encode() if held else NUMBER.pack(ready_offset))
            if locks.pop(key, None) != expected:
                found.append(f"{key!r} is not kept as {expected!r}")
    return found + [f"{key!r} is kept, and nobody holds or offers it" for key in locks]
