"""The processes of a measurement: each part of a work that wants one of its own.

python -m benchmarks.compare.child measure CONTENDER WORK FOLDER ADDRESS BUDGET_S     prints figures as JSON
python -m benchmarks.compare.child receive CONTENDER WORK FOLDER ADDRESS COUNT        prints delays
python -m benchmarks.compare.child fill    CONTENDER WORK FOLDER ADDRESS GIGABYTES    fills, and ends as WORK says
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .contender import Work
from .contenders import CONTENDERS
from .works import fill, measure, receive


def main() -> None:
    part, name, work_name, folder, address, amount = sys.argv[1:]
    contender, work = CONTENDERS[name], Work[work_name]
    if part == "measure":
        print(json.dumps(measure(contender, work, Path(folder), address, float(amount))))
    elif part == "receive":
        receive(contender, work, Path(folder), address, int(amount))
    else:
        fill(contender, work, Path(folder), address, float(amount))


if __name__ == "__main__":
    main()
