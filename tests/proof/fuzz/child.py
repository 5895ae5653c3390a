"""One target under libFuzzer, which takes the process over: ``python -m tests.proof.fuzz.child TARGET …``.

What follows the target is libFuzzer's: directories of inputs (the first is written to) and ``-name=value``.
"""

from __future__ import annotations

import importlib
import resource
import sys

import atheris

from .target import MIB


def main(*, timeout_s: int | None = None) -> None:
    """*timeout_s* in place of the target's."""
    name, arguments = sys.argv[1], sys.argv[2:]
    assert "logbroker_storage" not in sys.modules, "what is imported already cannot be instrumented"
    with atheris.instrument_imports(include=["logbroker", "logbroker_storage", "logbroker_tools"]):
        targets = importlib.import_module("tests.proof.fuzz.targets")
    target = targets.TARGETS[name]
    if target.address_mib is not None:
        limit = target.address_mib * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    limits = [
        f"-rss_limit_mb={target.rss_mib}",
        f"-malloc_limit_mb={target.rss_mib}",
        f"-timeout={timeout_s or target.timeout_s}",
        f"-max_len={target.max_bytes}",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *limits, *arguments], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
