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

from unimim.report import plots, scales, svg, text
from unimim.report.data import Axes, Cost, Curve, Entry, Figure, Report
from unimim.report.effects import AXES, Effect, Gain, effects
from unimim.report.figures import efforts, maskings, shape_biases
from unimim.report.gallery import gallery
from unimim.report.scatter import figure_chart
from unimim.report.verdict import (
    Estimate,
    Task,
    difference,
    estimate,
    headlines,
    leads,
    ordered,
    ranking,
    scores,
    tasks,
    verdict,
)

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
        columns=[_column(report, task) for task in headlines(columns)],
        rows=_rows(report, headlines(columns)),
        relative=_relative_chart(report.recipes, colors),
        losses=[_losses(entry, colors[entry.name]) for entry in report.recipes if entry.curves],
        bars=[(task, _task_chart(report, task, colors)) for task in headlines(columns)],
        further=[(task, _task_chart(report, task, colors)) for task in columns if task not in headlines(columns)],
        efforts=_charts(efforts(report)),
        gallery=gallery(report),
        effects=[_effect(effect, headlines(columns)) for effect in effects(report)],
        figures=_charts([*maskings(report), *shape_biases(report), *report.figures]),
        costs=[entry for entry in report.entries if entry.cost is not None],
        cost_bars=_cost_bars(report, colors),
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
        text.signed,
        text.interval,
        text.count,
        text.duration,
        text.memory,
        text.rate,
        text.clean_line,
        svg.color,
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
        (AXES[axis], axis, value, len(others) > 1 and all(other[axis] == value for other in others))
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


def _charts(figures: Sequence[Figure]) -> list[tuple[Figure, Markup]]:
    return [(figure, figure_chart(figure)) for figure in figures]


def _effect(effect: Effect, columns: Sequence[Task]) -> tuple[Effect, str, list[Gain | None]]:
    """An effect, the letter of its axis, and its gain at each task of `columns`."""
    gains = {gain.task: gain for gain in effect.gains}
    return effect, AXES[effect.axis], [gains.get(task) for task in columns]


def _cost_bars(report: Report, colors: dict[str, int]) -> list[tuple[str, str, Markup]]:
    """What was spent, its unit, and a bar for each recipe; quantities that no recipe measured are left out."""
    spent = [(entry, entry.cost) for entry in report.entries if entry.cost is not None]
    quantities: dict[tuple[str, str], list[float | None]] = {
        ("Time", "minutes"): [None if cost.seconds is None else cost.seconds / 60 for _, cost in spent],
        ("Throughput", "images/s"): [cost.images_per_second for _, cost in spent],
        ("Peak memory", "MB"): [cost.peak_memory_mb for _, cost in spent],
    }
    charts = []
    for (name, unit), values in quantities.items():
        known = [(entry, x) for (entry, _), x in zip(spent, values, strict=True) if x and 0 < x < 1e12]
        bars = [plots.Bar(entry.title, float(f"{x:.3g}"), None, color=colors.get(entry.name)) for entry, x in known]
        if bars:
            label = f"{name} in {unit} of " + text.join([f"{bar.label} {text.number(bar.value, '')}" for bar in bars])
            charts.append((name, unit, plots.bar_chart(bars, label=label, unit=unit, width=400)))
    return charts
