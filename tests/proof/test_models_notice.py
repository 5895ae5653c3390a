"""The models can fail: a fault planted in the product, one at a time, is one that its model sees."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from logbroker import group_store, groups
from logbroker.consumer_commits import ConsumerCommits
from logbroker.cursor import Cursor
from logbroker.membership import Membership
from logbroker.queues.state import QueueState
from logbroker.transaction_coordinator import TransactionCoordinator
from logbroker_storage import adoption, cleaner, log_reader, partition_log, retention, startup, time_search
from logbroker_storage.log_sync import LogSync
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.producer_state import Decision, MarkerVerdict, Verdict

from .models import MODELS
from .models.exploration import explore

EXAMPLES = (
    2000  # at most: the first that is seen ends it, which takes a dozen mostly, and a few hundred at worst
)

Plant = Callable[[pytest.MonkeyPatch], None]


def _wrapped(owner: Any, name: str, change: Callable[..., Any]) -> Plant:
    """Have *change* called instead, with what it replaces as the first argument."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: change(original, *args, **kwargs))

    return plant


def _without(verdict: Verdict) -> Plant:
    def decide(original: Any, *args: Any, **kwargs: Any) -> Decision:
        decided = original(*args, **kwargs)
        return Decision(Verdict.APPEND) if decided.verdict is verdict else decided

    return _wrapped(partition_log, "decide", decide)


def _marker_of_no_transaction(original: Any, entry: Any, *args: Any) -> MarkerVerdict:
    decided = original(entry, *args)
    return MarkerVerdict.END if entry is not None and decided is MarkerVerdict.FENCE else decided


def _synced_too_far(original: Any, sync: LogSync, end_offset: int) -> int:
    return end_offset if end_offset == sync._log.state().end.log_end_offset else original(sync, end_offset)


def _one_off(original: Any, *args: Any, **kwargs: Any) -> Any:
    found = original(*args, **kwargs)
    return found if found is None else found._replace(offset=found.offset + 1)


def _keeps_one_less(original: Any, *args: Any, **kwargs: Any) -> Any:
    decided = original(*args, **kwargs)
    return msgspec.structs.replace(decided, removals=decided.removals[:-1])


def _loses_the_last(original: Any, batches: Any, latest: Any, **kwargs: Any) -> Any:
    covered = original(batches, latest, **kwargs)
    latest._offsets = {name: offset + 1 for name, offset in latest._offsets.items()}
    return covered


def _since_of_before(original: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
    """A partition that is taken and given back is the same as before to who had it."""
    slots = dict(state.slots())
    after = original(state, *args, **kwargs)

    def aged(place: Any, slot: Any) -> Any:
        return msgspec.structs.replace(slot, since=1) if place in slots else slot

    return groups._with_slots(after, aged)


FAULTS: dict[str, tuple[str, Plant]] = {
    "a batch that is sent again is appended again": ("log", _without(Verdict.DUPLICATE)),
    "a batch that is missing goes unnoticed": ("log", _without(Verdict.OUT_OF_ORDER)),
    "an old epoch is let in": ("log", _without(Verdict.FENCED)),
    "a marker is written where nothing is open": (
        "log",
        _wrapped(partition_log, "decide_marker", _marker_of_no_transaction),
    ),
    "a sync that is not done is claimed": ("log", _wrapped(LogSync, "sync", _synced_too_far)),
    "what a dead process wrote is cut": (
        "log",
        _wrapped(adoption, "_adopt_tail", lambda original, log, active, end: end),
    ),
    "readers see what is not synced": (
        "log",
        _wrapped(
            PartitionLog,
            "publish_end",
            lambda original, log, end, *more: original(
                log, end._replace(visible_offset=end.log_end_offset), *more
            ),
        ),
    ),
    "aborted records are shown": (
        "log",
        _wrapped(log_reader, "is_aborted", lambda original, header, aborted: False),
    ),
    "a time is looked up one too late": ("log", _wrapped(time_search, "locate_timestamp", _one_off)),
    "retention keeps a segment too many": ("log", _wrapped(cleaner, "plan", _keeps_one_less)),
    "retention takes what is young": (
        "log",
        _wrapped(
            retention,
            "expired",
            lambda original, segments, **kwargs: [one for one in segments if not one.is_active],
        ),
    ),
    "compaction drops the latest of a key": ("log", _wrapped(cleaner, "map_offsets", _loses_the_last)),
    "recovery forgets the producers": (
        "log",
        _wrapped(
            startup,
            "publish",
            lambda original, log, recovered: original(log, recovered._replace(producers={})),
        ),
    ),
    "recovery forgets where the log starts": (
        "log",
        _wrapped(
            startup,
            "publish",
            lambda original, log, recovered: original(
                log, recovered._replace(end=recovered.end._replace(log_start_offset=0))
            ),
        ),
    ),
    "a commit is not checked": ("groups", _wrapped(Membership, "check", lambda original, *args: None)),
    "an ownership is not told from the next": ("groups", _wrapped(group_store, "apply", _since_of_before)),
    "what was handed out is not committed": (
        "groups",
        _wrapped(ConsumerCommits, "asked_on", lambda original, *args: None),
    ),
    "a member starts behind the committed offset": (
        "groups",
        _wrapped(
            Cursor,
            "__init__",
            lambda original, cursor, log, **kwargs: original(
                cursor, log, **(kwargs | {"position": kwargs["position"] + bool(kwargs["committed"])})
            ),
        ),
    ),
    "the dead keep their partitions": (
        "groups",
        _wrapped(
            group_store,
            "apply",
            lambda original, state, event, **kwargs: (
                state if isinstance(event, groups.Expire) else original(state, event, **kwargs)
            ),
        ),
    ),
    "an abort counts as a commit": (
        "transactions",
        _wrapped(log_reader, "is_aborted", lambda original, header, aborted: False),
    ),
    "a commit writes no markers": (
        "transactions",
        _wrapped(TransactionCoordinator, "_write_markers", lambda original, *args: None),
    ),
    "a former holder is not fenced": (
        "transactions",
        _wrapped(TransactionCoordinator, "is_current", lambda original, *args: True),
    ),
    "a message that was finished is handed out again": (
        "queues",
        _wrapped(QueueState, "finish", lambda original, *args, **kwargs: []),
    ),
    "a lease that is over is not ended": (
        "queues",
        _wrapped(QueueState, "expire", lambda original, *args, **kwargs: False),
    ),
    "what was settled is not journaled": (
        "queues whose messages are arranged",
        _wrapped(
            QueueState,
            "changes",
            lambda original, queue: msgspec.structs.replace(original(queue), blocks={}),
        ),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plant = FAULTS[fault]
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="differ"):
        explore(MODELS[model], examples=EXAMPLES, random_seed=rng.randrange(1 << 32), shrinks=False)
