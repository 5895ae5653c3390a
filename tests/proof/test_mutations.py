"""Each sync and each rule of order of the product, switched off, is noticed; and none is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .mutations import MUTANTS, noticed, run
from .mutations.mutant import Mutant, StaleMutantError, rewritten, source_path
from .mutations.runner import Runner
from .mutations.sync_calls import SyncCall, all_sync_calls, sync_calls
from .mutations.syncs import WITHOUT_A_MUTANT
from .proof import Proof, Row


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute and a half, on a machine that has nothing else to do
def test_every_mutant_is_noticed(prove: Callable[[Proof], list[Row]]) -> None:
    prove(run)


def test_every_sync_of_the_product_is_switched_off_by_a_mutant() -> None:
    switched_off: Counter[SyncCall] = Counter()
    for mutant in MUTANTS:
        before = sync_calls(mutant.module, source_path(mutant.module).read_text())
        switched_off += before - sync_calls(mutant.module, mutant.source())
    left = all_sync_calls() - switched_off
    assert sorted(left) == sorted(WITHOUT_A_MUTANT), (
        "give it a mutant in mutations/syncs.py, and a scenario that notices"
    )


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule)
def test_every_mutant_is_a_module_that_can_be_imported(mutant: Mutant) -> None:
    source = mutant.source()
    compile(source, mutant.module, "exec")
    assert source != source_path(mutant.module).read_text()


def test_rules_have_names_of_their_own() -> None:
    assert not [rule for rule, count in Counter(mutant.rule for mutant in MUTANTS).items() if count > 1]


@pytest.mark.parametrize("scenario", ["directories.a_file_replaced", "directories.there_is_no_such_scenario"])
def test_a_mutant_that_nobody_notices_fails_the_gate(tmp_path: Path, scenario: str) -> None:
    harmless = Mutant(
        "harmless", "logbroker_storage.files", "FILE_MODE = 0o644", "FILE_MODE = 0o600", (scenario,)
    )
    with Runner(tmp_path) as runner, pytest.raises(AssertionError, match="0 of 1 noticed"):
        noticed(runner, "harmless mutants", [harmless])


SOURCE = """\
def sync(log):
    if log.dirty:
        log.write()
        log.files.fsync(fd)
    return log
"""


def replacing(old: str, new: str) -> Mutant:
    return Mutant(rule="", module="m", old=old, new=new, scenarios=())


def test_lines_are_replaced_whole_and_keep_their_indentation() -> None:
    one_line = rewritten(SOURCE, replacing("log.files.fsync(fd)", "pass"))
    assert one_line == SOURCE.replace("log.files.fsync(fd)", "pass")
    several = replacing(
        """
            log.files.fsync(fd)
        return log
        """,
        """
            pass
        return None
        """,
    )
    assert rewritten(SOURCE, several) == one_line.replace("return log", "return None")


@pytest.mark.parametrize(
    "old", ["log.files.fsync", "log.files.fdatasync(fd)", "log.write()\nlog.write()", "return log\n"]
)
def test_lines_that_are_not_there_once_are_refused(old: str) -> None:
    twice = SOURCE + "\n\ndef other(log):\n    return log\n"
    with pytest.raises(StaleMutantError):
        rewritten(twice, replacing(old, "pass"))


def test_the_inventory_finds_calls_wherever_they_are() -> None:
    source = """
class Log:
    async def close(self):
        return [await self.log.wait_durable(end) for end in ends] or _sync(self.fd)

def write(files):
    def inner():
        files.replace_file(path, b"")
"""
    found = sync_calls("m", source)
    assert sorted((call.function, call.call) for call in found) == [
        ("Log.close", "_sync(self.fd)"),
        ("Log.close", "self.log.wait_durable(end)"),
        ("write.inner", "files.replace_file(path, b'')"),
    ]
