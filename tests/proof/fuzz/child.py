"""One target under libFuzzer, which takes the process over: ``python -m tests.proof.fuzz.child TARGET …``.

What follows the target is libFuzzer's: directories of inputs (the first is written to) and ``-name=value``.
"""

from __future__ import annotations

import importlib
import resource
import sys

import atheris

from .target import MIB, Target

# Those with the fewest imports first: instrumenting all of them takes seconds.
MODULES = ("codecs", "expressions", "pipelines", "inspector", "server")


def _target(name: str) -> Target:
    for module in MODULES:
        targets: dict[str, Target] = importlib.import_module(f"tests.proof.fuzz.{module}").TARGETS
        if name in targets:
            return targets[name]
    raise SystemExit(f"there is no fuzz target {name!r}")


def main(*, timeout_s: int | None = None) -> None:
    """*timeout_s* in place of the target's."""
    name, arguments = sys.argv[1], sys.argv[2:]
    assert "logbroker_storage" not in sys.modules, "what is imported already cannot be instrumented"
    with atheris.instrument_imports(include=["logbroker", "logbroker_storage", "logbroker_tools"]):
        target = _target(name)
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
