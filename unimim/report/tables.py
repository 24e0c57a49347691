"""The leaderboard for the terminal, for Markdown and for CSV."""

import math
from csv import writer
from io import StringIO

from rich.table import Table
from rich.text import Text

from unimim.report import text
from unimim.report.data import Cost, Entry, Report
from unimim.report.verdict import Task, estimate, ordered, tasks, verdict

_AXES = ("teacher", "norm", "student", "head", "loss")


def _header(report: Report) -> list[str]:
    scores = [_label(task) for task in tasks(report)]
    return ["recipe", *_AXES, *scores, "time", "images/s", "peak memory"]


def _label(task: Task) -> str:
    return text.clean_line(f"{task.label} [{task.unit}]" if task.unit else task.label)


def _line(report: Report, entry: Entry) -> list[str]:
    axes = [getattr(entry.axes, axis) for axis in _AXES] if entry.axes else [""] * len(_AXES)
    cost = entry.cost or Cost()
    values = []
    for task in tasks(report):
        found = estimate(entry, task)
        span = f" ({text.interval(*found.interval, task.unit)})" if found and found.interval else ""
        values.append(text.number(found.value, task.unit) + span if found else text.MISSING)
    spent = [text.duration(cost.seconds), text.rate(cost.images_per_second), text.memory(cost.peak_memory_mb)]
    return [text.clean_line(word) for word in [entry.title, *axes, *values, *spent]]


def leaderboard(report: Report) -> Table:
    """The leaderboard as a rich table with the verdict as its caption.

    Every string becomes a `Text`, so that no name is read as rich markup or reaches the terminal as a control sequence.
    """
    title, caption = text.clean_line(report.title), text.clean_line(verdict(report).headline)
    table = Table(title=Text(title), caption=Text(caption), caption_justify="left")
    header = _header(report)
    for i, name in enumerate(header):
        is_name = i <= len(_AXES)
        table.add_column(Text(name), justify="left" if is_name else "right", overflow="fold")
    entries = ordered(report)
    for i, entry in enumerate(entries):
        ends = i + 1 < len(entries) and entries[i + 1].is_baseline and not entry.is_baseline
        style = "dim" if entry.is_baseline else None
        table.add_row(*(Text(word) for word in _line(report, entry)), style=style, end_section=ends)
    return table


def markdown(report: Report) -> str:
    """The verdict and the leaderboard in GitHub's Markdown."""
    header = _header(report)
    rule = ["---"] * (1 + len(_AXES)) + ["---:"] * (len(header) - 1 - len(_AXES))
    lines = [[text.escape_markdown(word) for word in header], rule]
    lines += [[text.escape_markdown(word) for word in _line(report, entry)] for entry in ordered(report)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text.escape_markdown(text.clean_line(verdict(report).headline))}\n\n{table}\n"


def csv(report: Report) -> str:
    """One row an entry with full-precision numbers: mean, interval and number of seeds of each task, and the cost.

    A text cell that a spreadsheet would run as a formula is prefixed with an apostrophe.
    """
    columns = tasks(report)
    header = ["name", "title", "kind", *_AXES]
    for task in columns:
        label = _label(task)
        header += [label, f"{label} low", f"{label} high", f"{label} seeds"]
    header += ["seconds", "images_per_second", "peak_memory_mb", "steps", "images_seen"]
    buffer = StringIO()
    sheet = writer(buffer, lineterminator="\n")
    sheet.writerow([_cell(name) for name in header])
    for entry in ordered(report):
        axes = [getattr(entry.axes, axis) if entry.axes else None for axis in _AXES]
        values: list[float | None] = []
        for task in columns:
            found = estimate(entry, task)
            low, high = found.interval if found and found.interval else (None, None)
            values += [found.value if found else None, low, high, found.num_seeds if found else 0]
        cost = entry.cost or Cost()
        spent = [cost.seconds, cost.images_per_second, cost.peak_memory_mb, cost.steps, cost.images_seen]
        sheet.writerow([_cell(x) for x in [entry.name, entry.title, entry.kind, *axes, *values, *spent]])
    return buffer.getvalue()


def _cell(value: str | float | None) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if not isinstance(value, str):
        return str(value)
    line = text.clean_line(value)
    return "'" + line if line[:1] in {"=", "+", "-", "@"} else line
