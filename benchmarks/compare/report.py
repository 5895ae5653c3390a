"""Results as Markdown, JSON and a plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..measuring import Figures, number, pyplot
from .contender import Work
from .works import LEADING_FIGURE

OURS = "logbroker"


@dataclass
class Results:
    """Medians by work and contender, and what was not measured."""

    machine: str
    budget_s: float
    rounds: int
    skipped: dict[str, str]
    """Contenders that could not be run here, and why."""
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    """By work: contenders that broke down, and how."""
    works: dict[str, dict[str, Figures]] = field(default_factory=dict)


def write(results: Results, folder: Path) -> None:
    """compare.md, compare.json and, where matplotlib is installed, compare.svg."""
    (folder / "compare.json").write_text(json.dumps(asdict(results), indent=1), encoding="utf-8")
    (folder / "compare.md").write_text(markdown(results), encoding="utf-8")
    _plot(results, folder / "compare.svg")


def markdown(results: Results) -> str:
    lines = [f"Medians of {results.rounds} rounds of {results.budget_s} s; {results.machine}.", ""]
    for work in Work:
        if results.works.get(work.value):
            lines += [*_table(work, results.works[work.value]), ""]
    lines += [f"- skipped: {name}: {reason}" for name, reason in results.skipped.items()]
    for work_name, failures in results.failed.items():
        for name, reason in failures.items():
            lines.append(f"- failed: {work_name}: {name}: {(reason.splitlines() or ['no reason given'])[-1]}")
    return "\n".join(lines) + "\n"


def _table(work: Work, by_contender: dict[str, Figures]) -> list[str]:
    leading = LEADING_FIGURE[work]
    ranked = _ranked(work, by_contender)
    keys = list(dict.fromkeys(key for figures in by_contender.values() for key in figures))
    reference = next((name for name, _ in ranked if name.startswith(OURS)), None)
    lines = [
        f"### {work.value}",
        "",
        "| contender | " + " | ".join(key.replace("_", " ") for key in keys) + " | against our best |",
        "|---|" + "---:|" * (len(keys) + 1),
    ]
    for name, figures in ranked:
        cells = " | ".join(number(figures[key]) if key in figures else "" for key in keys)
        ratio = f"{figures[leading] / by_contender[reference][leading]:.2f}" if reference else ""
        lines.append(f"| {f'**{name}**' if name.startswith(OURS) else name} | {cells} | {ratio} |")
    return lines


def _ranked(work: Work, by_contender: dict[str, Figures]) -> list[tuple[str, Figures]]:
    leading = LEADING_FIGURE[work]
    return sorted(by_contender.items(), key=lambda item: item[1][leading], reverse=leading.endswith("_per_s"))


def _plot(results: Results, path: Path) -> None:
    """One panel a work, a bar a contender, ours in colour; on a logarithmic scale, for they lie far apart."""
    plotting = pyplot()
    works = [work for work in Work if results.works.get(work.value)]
    if plotting is None or not works:
        return
    heights = [1 + 0.35 * len(results.works[work.value]) for work in works]
    figure, axes = plotting.subplots(
        len(works), 1, figsize=(9, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for (panel,), work in zip(axes, works, strict=True):
        leading = LEADING_FIGURE[work]
        ranked = _ranked(work, results.works[work.value])[::-1]
        colours = ["tab:blue" if name.startswith(OURS) else "tab:gray" for name, _ in ranked]
        panel.barh([name for name, _ in ranked], [figures[leading] for _, figures in ranked], color=colours)
        panel.set_xscale("log")
        panel.set_title(f"{work.value}: {leading.replace('_', ' ')}", loc="left")
    figure.savefig(path)
    plotting.close(figure)
