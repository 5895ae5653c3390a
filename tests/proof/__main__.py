"""The command line of the proofs; see the package."""

from __future__ import annotations

import importlib
import random
import sys
import time
import traceback
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .proof import Proof, Row, Scope, delete_folder, new_folder

# In the order of docs/durability.md. Modules are imported when they are wanted: some need what not every
# machine has.
PROOFS = {
    "crash-states": "tests.proof.crash_states",
    "mutations": "tests.proof.mutations",
    "power-cuts": "tests.proof.power_cuts",
    "kills": "tests.proof.kills",
    "faults": "tests.proof.faults",
    "damage": "tests.proof.damage",
    "models": "tests.proof.models",
    "lessons": "tests.proof.lessons",
    "fuzz": "tests.proof.fuzz",
    "history": "tests.proof.history",
    "soak": "tests.proof.soak",
}


def main(
    proofs: Annotated[list[str] | None, typer.Argument(help=f"Of: {', '.join(PROOFS)}. All of them.")] = None,
    long: Annotated[bool, typer.Option("--long", help="The long form: hours.")] = False,
    seed: Annotated[int | None, typer.Option(help="Repeat what was random (default: a new one).")] = None,
) -> None:
    """Try to break the durability contract, and print what was tried: test, cases, seed, result.

    Exits with 1 when a promise was broken.
    """
    unknown = sorted(set(proofs or ()) - set(PROOFS))
    if unknown:
        raise typer.BadParameter(f"there is no proof {unknown[0]!r}; there are {', '.join(PROOFS)}")
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    table = Table(
        "proof", "test", "cases", "seed", "result", "seconds", title=f"python -m tests.proof --seed {seed}"
    )
    broken = False
    for name in proofs or PROOFS:
        proof: Proof = importlib.import_module(PROOFS[name]).run
        folder = new_folder()
        begun = time.monotonic()
        try:
            for row in proof(Scope(seed, long, folder)):
                now = time.monotonic()
                _add(table, name, row, now - begun)
                begun = now
        except Exception:  # whatever it was: the other proofs are run all the same
            broken = True
            traceback.print_exc()
            table.add_row(name, "", "", str(seed), "BROKEN: see above", f"{time.monotonic() - begun:.0f}")
        finally:
            delete_folder(folder)
    Console().print(table)
    sys.exit(1 if broken else 0)


def _add(table: Table, proof: str, row: Row, seconds: float) -> None:
    print(f"{proof}: {row.test}: {row.cases:,} {row.unit}: {row.result} ({seconds:.0f} s)", flush=True)
    seed = "" if row.seed is None else str(row.seed)
    table.add_row(proof, row.test, f"{row.cases:,} {row.unit}", seed, row.result, f"{seconds:.0f}")


typer.run(main)
