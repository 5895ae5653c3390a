"""Results as Markdown, JSON and log-log plots."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..measuring import Figures, number, pyplot

BySize = dict[int, Figures]
OF = {"history": "records", "partitions": "partitions", "groups": "groups"}
PANELS_A_ROW = 3


@dataclass
class Results:
    """Figures by work and size."""

    machine: str
    works: dict[str, BySize] = field(default_factory=dict)
    seconds: dict[str, int] = field(default_factory=dict)
    """How long each work took."""


def write(results: Results, folder: Path) -> None:
    """growth.md, growth.json and, where matplotlib is installed, growth-WORK.svg for each work."""
    (folder / "growth.json").write_text(json.dumps(asdict(results), indent=1), encoding="utf-8")
    (folder / "growth.md").write_text(markdown(results), encoding="utf-8")
    for work, by_size in results.works.items():
        _plot(work, by_size, folder / f"growth-{work}.svg")


def markdown(results: Results) -> str:
    lines = [f"{results.machine}.", ""]
    for work, by_size in results.works.items():
        sizes = list(by_size)
        lines += [
            f"### Over {OF[work]}",
            "",
            f"| {OF[work]} | " + " | ".join(f"{size:,}" for size in sizes) + " | grows as size to the |",
            "|---|" + "---:|" * (len(sizes) + 1),
        ]
        for key in by_size[sizes[0]]:
            cells = " | ".join(number(by_size[size][key]) for size in sizes)
            lines.append(f"| {key.replace('_', ' ')} | {cells} | {_exponent(by_size, key)} |")
        lines.append("")
    lines += [f"- {work} took {seconds} s" for work, seconds in results.seconds.items()]
    return "\n".join(lines) + "\n"


def _exponent(by_size: BySize, key: str) -> str:
    """The slope of the line between the first and the last size, in the log-log plot."""
    (first, *_, last) = (*by_size, *by_size)
    if first == last or not (by_size[first][key] > 0 and by_size[last][key] > 0):
        return ""
    return f"{math.log(by_size[last][key] / by_size[first][key]) / math.log(last / first):.2f}"


def _plot(work: str, by_size: BySize, path: Path) -> None:
    """A panel a figure, from a tenth of its smallest to ten times its largest value: a flat one looks flat."""
    plotting = pyplot()
    if plotting is None:
        return
    sizes = list(by_size)
    keys = list(by_size[sizes[0]])
    rows = math.ceil(len(keys) / PANELS_A_ROW)
    figure, axes = plotting.subplots(
        rows, PANELS_A_ROW, figsize=(4 * PANELS_A_ROW, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for index, panel in enumerate(axes.flat):
        if index >= len(keys):
            panel.set_axis_off()
            continue
        values = [by_size[size][keys[index]] for size in sizes]
        panel.loglog(sizes, values, "o-")
        if min(values) > 0:
            panel.set_ylim(min(values) / 10, max(values) * 10)
        panel.set_title(keys[index].replace("_", " "), loc="left")
        panel.set_xlabel(OF[work])
    figure.savefig(path)
    plotting.close(figure)
