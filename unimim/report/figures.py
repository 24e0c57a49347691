"""Figures that follow from the entries of a report, and the paper's Figures 2 and 3 redrawn from measured values."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from unimim.report.data import Entry, Figure, Report, Series
from unimim.report.effects import axis_of, settings
from unimim.report.verdict import Task, estimate, tasks

FIGURE_2 = (
    "The paper's Figure 2 is a plot without printed values. What its text says: the block-wise mask is better at low "
    "ratios and the random mask at high ones; block-wise at 40 % was chosen over all three protocols. Tables 8 and 9 "
    "give 85.0 % fine-tuned on ImageNet-1k and 53.8 mIoU on ADE20K for the default setting with a CLIP teacher."
)
FIGURE_3 = (
    "The paper's Figure 3 is a plot without printed values. What its text says: humans decide by shape far more than "
    "supervised models do, and masked image modeling moves the student towards shape from its teacher, CLIP ViT-B/16 or "
    "MAE ViT-B/16. Vertical lines are averages there too."
)
LENGTH = ("epochs", "optimization.warmup_epochs")
"""Settings in which runs of one recipe of different length differ."""


def efforts(report: Report) -> list[Figure]:
    """The main task's score against steps and against hours; runs of one recipe of different length are joined.

    Against steps only if they differ: recipes that were given the same number need no such chart.
    """
    columns = tasks(report)
    spent = [entry for entry in report.recipes if entry.cost and columns and estimate(entry, columns[0])]
    lines: dict[object, list[Entry]] = {}
    for entry in spent:
        key = tuple(settings(entry, LENGTH).items()) or entry.name
        lines.setdefault(key, []).append(entry)
    steps = {entry.name: float(entry.cost.steps or math.nan) for entry in spent if entry.cost}
    hours = {entry.name: (entry.cost.seconds or math.nan) / 3600 for entry in spent if entry.cost}
    figures = []
    for label, spending in (("optimizer steps", steps), ("hours of training", hours)):
        known = {value for value in spending.values() if math.isfinite(value)}
        if len(known) > 1:
            title = f"{columns[0].name.capitalize()} against {label.split()[-1 if label.endswith('steps') else 0]}"
            series = tuple(_line(line, spending, columns[0]) for line in lines.values())
            figures.append(Figure(title, label, _measured(columns[0]), series))
    return figures


def maskings(report: Report) -> list[Figure]:
    """The paper's Figure 2: each task's score against the mask ratio, one line a strategy.

    From recipes that differ in nothing but the mask; only where a strategy has two ratios or more.
    """
    groups: dict[object, list[Entry]] = {}
    for entry in report.recipes:
        found = settings(entry)
        rest = tuple(item for item in found.items() if axis_of(item[0]) != "mask")
        if _number(found.get("masks.main.ratio", "")) is not None:
            groups.setdefault(rest, []).append(entry)
    figures = []
    for group in groups.values():
        lines: dict[str, list[Entry]] = {}
        for entry in sorted(group, key=_ratio):
            lines.setdefault(settings(entry)["masks.main.name"], []).append(entry)
        if max(len({_ratio(entry) for entry in line}) for line in lines.values()) < 2:
            continue
        ratios = {entry.name: _ratio(entry) for entry in group}
        for task in tasks(report):
            series = tuple(_line(line, ratios, task, f"{name} mask") for name, line in lines.items())
            if any(s.y for s in series):
                title = f"{task.name.capitalize()} against the mask ratio"
                figures.append(Figure(title, "mask ratio", _measured(task), series, paper=FIGURE_2))
    return figures


def shape_bias(subjects: Mapping[str, Mapping[str, float]], pooled: Mapping[str, float], note: str = "") -> Figure:
    """The paper's Figure 3: the share of decisions by texture for each shape category, and each subject's pooled line.

    Args:
        subjects: {subject: {category: shape bias in [0, 1]}}; NaN where a subject decided by neither cue.
        pooled: {subject: its shape bias over all categories, in [0, 1]}.
        note: how it was measured.
    """
    rows = tuple(sorted({category for biases in subjects.values() for category in biases}))
    series = []
    for name, biases in subjects.items():
        known = [row for row in rows if math.isfinite(biases.get(row, math.nan))]
        level = 1 - pooled[name] if math.isfinite(pooled.get(name, math.nan)) else None
        places = tuple(float(rows.index(row)) for row in known)
        series.append(Series(name, tuple(1 - biases[row] for row in known), places, level=level))
    return Figure(
        title="Shape bias by category",
        x_label="fraction of texture decisions",
        y_label="",
        series=tuple(series),
        rows=rows,
        x_range=(0.0, 1.0),
        top_label="fraction of shape decisions",
        note=note,
        paper=FIGURE_3,
    )


def shape_biases(report: Report) -> list[Figure]:
    """The paper's Figure 3, from the scores that `unimim eval --task shape-bias` gives, means over seeds; none without."""
    subjects: dict[str, dict[str, list[float]]] = {}
    for entry in report.recipes:
        for score in entry.scores:
            if score.task == "shape-bias":
                of, _, category = score.metric.removeprefix("shape bias").partition(", ")
                subjects.setdefault(entry.title + of, {}).setdefault(category, []).append(score.value / 100)
    means = {name: {row: fmean(values) for row, values in found.items()} for name, found in subjects.items()}
    pooled = {name: rows.pop("", math.nan) for name, rows in means.items()}
    return [shape_bias(means, pooled)] if means else []


def _line(entries: Sequence[Entry], x: Mapping[str, float], task: Task, name: str = "") -> Series:
    found = [(x[entry.name], e) for entry in entries if (e := estimate(entry, task)) and math.isfinite(x[entry.name])]
    found.sort(key=lambda point: point[0])
    places, values = tuple(place for place, _ in found), tuple(e.value for _, e in found)
    return Series(name or entries[0].title, places, values, tuple(e.interval for _, e in found))


def _measured(task: Task) -> str:
    return f"{task.metric}, {task.unit}" if task.unit else task.metric


def _ratio(entry: Entry) -> float:
    return _number(settings(entry)["masks.main.ratio"]) or 0.0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
