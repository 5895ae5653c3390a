"""Any order of what may happen, against models that are plain lists: the log, groups, transactions, queues.

Each model is a state machine of hypothesis, in a module of its own: it does a random step with the real code, does
the same with a list or a dictionary, and holds after every step that both say the same.

    model           what is real                                         what is the model
    log             a data directory with one partition, two handles     a list of batches
    groups          consumers in a data directory, their coordinator     two numbers for each partition
    transactions    a broker                                             a list of committed records
    queues          the state of a queue, and what it journals           an entry for each message

``exploration`` runs them and counts. ``test_models_notice`` plants faults in the product, one at a time, and shows
that the model sees each.
"""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis.stateful import RuleBasedStateMachine

from ..proof import Proof, Row, Scope
from .exploration import STEPS, explore
from .group_model import GroupMachine
from .log_model import LogMachine
from .queue_model import QueueMachine, QueueMachineLookingAhead
from .transaction_model import Transactions

MODELS: dict[str, type[RuleBasedStateMachine]] = {
    "log": LogMachine,
    "groups": GroupMachine,
    "transactions": Transactions,
    "queues": QueueMachine,
    "queues whose messages are arranged": QueueMachineLookingAhead,
}

EXAMPLES = 500
LONG_EXAMPLES = 20_000


def run(scope: Scope) -> Iterator[Row]:
    """Every model: 500 examples and 25,000 steps at least, 20,000 and a million in the long form."""
    for name in MODELS:
        yield from proof_of(name)(scope)


def proof_of(name: str) -> Proof:
    """The proof of one model."""

    def prove(scope: Scope) -> Iterator[Row]:
        explored = explore(
            MODELS[name],
            examples=scope.count(EXAMPLES, LONG_EXAMPLES),
            random_seed=scope.rng(name).randrange(1 << 32),
        )
        unit = f"examples, {explored.steps:,} steps (of at most {STEPS} each)"
        yield Row(name, explored.examples, unit, scope.seed)

    return prove
