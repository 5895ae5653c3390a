"""One step: ``python -m benchmarks.growth.child MODULE.STEP DATA AMOUNT`` prints its figures as JSON."""

from __future__ import annotations

import json
import sys

from . import groups, history, partitions, steps

MODULES = {"groups": groups, "history": history, "partitions": partitions, "steps": steps}


def main() -> None:
    name, data, amount = sys.argv[1:]
    module, step = name.split(".")
    print(json.dumps(getattr(MODULES[module], step)(data, int(amount))))


if __name__ == "__main__":
    main()
