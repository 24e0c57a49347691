"""The report as one self-contained HTML page.

Nothing on the page leaves it: charts are inline SVG, images are PNG data URIs, and a content security policy forbids
every load and every script but the page's own. Text from outside goes through `text.clean`, then jinja2 or markupsafe
escape it.
"""

import base64
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from unimim.report import plots, scales, text
from unimim.report.data import Axes, Cost, Curve, Entry, Report
from unimim.report.gallery import gallery
from unimim.report.verdict import Estimate, Task, difference, estimate, leads, ordered, ranking, scores, tasks, verdict

_AXES = {"teacher": "T", "norm": "N", "student": "S", "head": "H", "loss": "L"}
_STATUS = {
    "clear": "Clear difference",
    "one seed": "One seed",
    "tie": "Tie within the interval",
    "unjudged": "No interval measured",
    "alone": "One recipe",
    "none": "No result",
}


def render(report: Report) -> str:
    """The page. The same report gives the same characters."""
    columns = tasks(report)
    colors = {entry.name: index for index, entry in enumerate(report.recipes)}
    decision = verdict(report)
    return _template().render(
        report=report,
        verdict=decision,
        leads=_lead_chart(report, columns, colors),
        status=_STATUS[decision.status],
        columns=[_column(report, task) for task in columns],
        rows=_rows(report, columns),
        relative=_relative_chart(report.recipes, colors),
        losses=[_losses(entry, colors[entry.name]) for entry in report.recipes if entry.curves],
        bars=[(task, _task_chart(report, task, colors)) for task in columns],
        gallery=gallery(report),
        costs=_costs(report),
        no_cost=Cost(),
        configs=[entry for entry in report.entries if entry.config_yaml or entry.provenance],
        colors=colors,
    )


def write(report: Report, path: str | os.PathLike[str]) -> Path:
    """Renders `report` to `path` and returns it. Readers see the old file or the whole new one, never a part.

    Raises:
        OSError: `path` cannot be written; an existing file is then unchanged.
    """
    page = render(report).encode("utf-8")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _finalize(value: object) -> object:
    return text.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _sort_key(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else str(value)


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    formats = (
        text.number,
        text.interval,
        text.count,
        text.duration,
        text.memory,
        text.rate,
        text.clean_line,
        plots.color,
    )
    environment.filters |= {function.__name__: function for function in formats}
    environment.filters |= {"csp_hash": _csp_hash, "sort_key": _sort_key}
    return environment.get_template("report.html")


@dataclass(frozen=True)
class Cell:
    """A value of the leaderboard; `leads` if no recipe is clearly better."""

    estimate: Estimate | None
    unit: str
    leads: bool


@dataclass(frozen=True)
class Row:
    """A line of the leaderboard; `chips` are (letter, axis, value, whether all recipes share the value)."""

    entry: Entry
    seeds: str
    chips: tuple[tuple[str, str, str, bool], ...]
    cells: tuple[Cell, ...]


def _column(report: Report, task: Task) -> tuple[Task, list[tuple[str, list[str]]]]:
    """A task with its protocols, each with the titles of the entries that followed it."""
    followed: dict[str, list[str]] = {}
    for entry in report.entries:
        for protocol in dict.fromkeys(score.protocol for score in scores(entry, task) if score.protocol):
            followed.setdefault(protocol, []).append(entry.title)
    return task, list(followed.items())


def _rows(report: Report, columns: Sequence[Task]) -> list[Row]:
    axes = [entry.axes for entry in report.recipes if entry.axes is not None]
    rows = []
    for entry in ordered(report):
        cells = tuple(_cell(report, entry, task) for task in columns)
        rows.append(Row(entry, _seeds(cells), _chips(entry.axes, axes), cells))
    return rows


def _seeds(cells: Sequence[Cell]) -> str:
    counts = [cell.estimate.num_seeds for cell in cells if cell.estimate is not None]
    if not counts:
        return "no score"
    fewest, most = min(counts), max(counts)
    span = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"{span} seed" if most == 1 else f"{span} seeds"


def _chips(own: Axes | None, everyone: Sequence[Axes]) -> tuple[tuple[str, str, str, bool], ...]:
    if own is None:
        return ()
    others = [asdict(axes) for axes in everyone]
    return tuple(
        (_AXES[axis], axis, value, len(others) > 1 and all(other[axis] == value for other in others))
        for axis, value in asdict(own).items()
    )


def _cell(report: Report, entry: Entry, task: Task) -> Cell:
    found = estimate(entry, task)
    if found is None or entry.is_baseline:
        return Cell(found, task.unit, False)
    _, top = ranking(report, task)[0]
    gap = difference(top, found, task.unit)
    return Cell(found, task.unit, gap.value == 0 or (gap.interval is not None and not gap.is_clear))


def _line(curve: Curve, label: str, color: int, scale: float = 1.0) -> plots.Line:
    raw = scales.finite(curve.values) / scale
    smoothed = scales.smooth(raw, max(1, len(raw) // 25))
    return plots.Line(label, scales.finite(curve.steps), smoothed, color, raw)


def _relative_chart(recipes: Sequence[Entry], colors: dict[str, int]) -> tuple[Markup | None, list[str]]:
    """loss / first loss of every recipe, and the titles of those whose first loss is not positive."""
    lines, left_out = [], []
    for entry in recipes:
        if not entry.curves:
            continue
        values = scales.finite(entry.curves[0].values)
        first = next((float(value) for value in values if np.isfinite(value)), 0.0)
        if first > 1e-12:
            lines.append(_line(entry.curves[0], entry.title, colors[entry.name], scale=first))
        else:
            left_out.append(entry.title)
    label = f"Relative training loss over steps of {text.join([line.label for line in lines])}" if lines else ""
    return (plots.line_chart(lines, label=label, y_label="loss / first loss") if lines else None), left_out


def _losses(entry: Entry, color: int) -> tuple[Entry, list[tuple[str, int]], Markup]:
    """An entry, the name and colour of each of its curves, and their chart."""
    lines = [_line(curve, curve.name, color + i) for i, curve in enumerate(entry.curves)]
    label = f"Training loss of {entry.title} over steps"
    chart = plots.line_chart(lines, label=label, y_label=entry.curves[0].name, size=(260, 180), named=False)
    return entry, [(line.label, line.color) for line in lines], chart


def _lead_chart(report: Report, columns: Sequence[Task], colors: dict[str, int]) -> tuple[str, Task, Markup] | None:
    """The best recipe at the main task, that task, and the recipe's lead over everything else."""
    found = leads(report, columns[0]) if columns else []
    if not found:
        return None
    best = ranking(report, columns[0])[0][0].title
    bars = [plots.Bar(entry.title, gap.value, gap.interval, color=colors.get(entry.name)) for entry, gap in found]
    label = f"Lead of {best} over " + text.join([f"{entry.title}: {gap}" for entry, gap in found])
    return best, columns[0], plots.lead_chart(bars, label=label, unit=columns[0].unit)


def _task_chart(report: Report, task: Task, colors: dict[str, int]) -> Markup | None:
    order = [*(entry for entry, _ in ranking(report, task)), *report.baselines]
    found = [(entry, estimate(entry, task)) for entry in order]
    bars = [
        plots.Bar(entry.title, e.value, e.interval, e.values, colors.get(entry.name))
        for entry, e in found
        if e is not None
    ]
    label = f"{task.label} of " + text.join([f"{bar.label} {text.number(bar.value, task.unit)}" for bar in bars])
    return plots.bar_chart(bars, label=label, unit=task.unit) if bars else None


def _costs(report: Report) -> list[tuple[Entry, float, float]]:
    """Entries with a cost, and their wall time and peak memory as shares (0 to 1) of the largest."""
    found = [(entry, entry.cost) for entry in report.entries if entry.cost is not None]

    def shares(values: list[float | None]) -> list[float]:
        known = [value if value is not None and np.isfinite(value) and value > 0 else 0.0 for value in values]
        largest = max(known, default=0.0) or 1.0
        return [value / largest for value in known]

    seconds = shares([cost.seconds for _, cost in found])
    memory = shares([cost.peak_memory_mb for _, cost in found])
    return [(entry, time, peak) for (entry, _), time, peak in zip(found, seconds, memory, strict=True)]
