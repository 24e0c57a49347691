"""The chart of a `Figure`: points joined by lines, or one row of points for each category."""

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from unimim.report.data import Figure, Series
from unimim.report.scales import bounds, finite, tick_labels, ticks
from unimim.report.svg import Frame, axes, color, dash, rule, spread, svg, words
from unimim.report.text import clean_line, join, number, shorten

MARKS = (
    "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0z",
    "M0-5L4.8 3.8H-4.8z",
    "M0-5.2L5.2 0L0 5.2L-5.2 0z",
    "M-4-4h8v8h-8z",
)
"""A circle, a triangle, a diamond and a square around the origin: series differ in more than colour."""
ROW = 24


def figure_chart(figure: Figure, width: int = 520) -> Markup:
    """One <svg> element; it says so if no point is a number."""
    points = [(x, y) for series in figure.series for x, y in _points(series)]
    if not points:
        return svg(width, 120, figure.title, [words(width / 2, 60, "nothing was measured", "middle", "label")])
    return _rows(figure, width) if figure.rows else _lines(figure, width)


def _lines(figure: Figure, width: int) -> Markup:
    drawn = [series for series in figure.series if _points(series)]
    colors = {series.name: index for index, series in enumerate(figure.series)}
    reach = [finite([y, *(interval or ())]) for s in drawn for y, interval in zip(s.y, _intervals(s), strict=True)]
    low, high = bounds(reach)
    margin = 0.06 * (high - low)
    x_range = figure.x_range or _wider(bounds([finite(series.x) for series in drawn]))
    frame = Frame(46, 26, width - _margin(drawn), 264, x_range, (low - margin, high + margin))
    parts, marks = axes(frame, figure.x_label, figure.y_label), []
    for series in drawn:
        index = colors[series.name]
        joined = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in _points(series))
        path = Markup('<path class="line" d="M{}" style="stroke:{}" stroke-dasharray="{}"/>')
        parts.append(path.format(joined, color(index), dash(index)))
        for x, y, interval in zip(series.x, series.y, _intervals(series), strict=True):
            if math.isfinite(x) and math.isfinite(y):
                ends = finite(interval or (math.nan,))
                if np.isfinite(ends).all():
                    span = Markup('<path class="reach" d="M{0:.1f} {1:.1f}V{2:.1f}" style="stroke:{3}"/>')
                    parts.append(span.format(frame.x(x), frame.y(ends[0]), frame.y(ends[1]), color(index)))
                marks.append(_mark(frame.x(x), frame.y(y), index, f"{series.name}, {x:.4g}: {number(y, '')}"))
    return svg(width, 300, _spoken(figure, drawn), [*parts, *marks, *_key(frame, drawn, colors)])


def _rows(figure: Figure, width: int) -> Markup:
    drawn = [series for series in figure.series if _points(series)]
    colors = {series.name: index for index, series in enumerate(figure.series)}
    left = 24 + 6.8 * max(len(_short(row)) for row in figure.rows)
    x_range = figure.x_range or bounds([finite(series.x) for series in drawn])
    top = 46.0
    frame = Frame(left, top, width - _margin(drawn), top + ROW * len(figure.rows), x_range, (0, 1))
    values, parts = ticks(*frame.x_range, target=5), []
    for value, name in zip(values, tick_labels(values), strict=True):
        parts += [rule("mark", frame.x(value), frame.bottom, frame.x(value), frame.bottom + 4)]
        parts += [words(frame.x(value), frame.bottom + 17, name, "middle")]
        if figure.top_label:
            parts.append(
                words(
                    frame.x(value), frame.top - 8, tick_labels([1 - v for v in values])[values.index(value)], "middle"
                )
            )
    for place, row in enumerate(figure.rows):
        middle = _middle(frame, place)
        parts += [rule("grid", frame.left, middle, frame.right, middle)]
        parts += [words(frame.left - 10, middle + 4, _short(row), "end", "name")]
    parts.append(rule("axis", frame.left, frame.bottom, frame.right, frame.bottom))
    parts.append(words(frame.right, frame.bottom + 32, frame.fit(figure.x_label), "end", "label"))
    if figure.top_label:
        parts.append(words(frame.left, frame.top - 26, frame.fit(figure.top_label), "start", "label"))
    for series in drawn:
        index = colors[series.name]
        if series.level is not None and math.isfinite(series.level):
            line = Markup(
                '<line class="level" x1="{0:.1f}" y1="{1:.1f}" x2="{0:.1f}" y2="{2:.1f}" style="stroke:{3}" '
                'stroke-dasharray="{4}"/>'
            )
            parts.append(line.format(frame.x(series.level), frame.top, frame.bottom, color(index), dash(index)))
        for x, y in _points(series):
            told = f"{series.name}, {figure.rows[int(y)]}: {number(x, '')}"
            parts.append(_mark(frame.x(x), _middle(frame, int(y)), index, told))
    return svg(width, frame.bottom + 38, _spoken(figure, drawn), [*parts, *_key(frame, drawn, colors)])


def _middle(frame: Frame, row: int) -> float:
    return frame.top + ROW * (row + 0.5)


def _key(frame: Frame, drawn: Sequence[Series], colors: dict[str, int]) -> list[Markup]:
    """Marks and names at the right, as near to the end of each line as they fit."""
    ends = [_points(series)[-1][1] for series in drawn]
    wanted = [frame.y(end) for end in ends] if frame.y_range != (0, 1) else [frame.top + 8.0] * len(drawn)
    heights = spread(wanted, 18.0, frame.top, frame.bottom)
    parts = []
    for series, height in zip(drawn, heights, strict=True):
        parts.append(_mark(frame.right + 16, height, colors[series.name], ""))
        parts.append(words(frame.right + 26, height + 4, _short(series.name), kind="name"))
    return parts


def _mark(x: float, y: float, index: int, title: str) -> Markup:
    shape = Markup('<path class="glyph" transform="translate({:.1f} {:.1f})" d="{}" style="fill:{}">{}</path>')
    told = Markup("<title>{}</title>").format(clean_line(title)) if title else Markup("")
    return shape.format(x, y, MARKS[index % len(MARKS)], color(index), told)


def _points(series: Series) -> list[tuple[float, float]]:
    pairs = zip(finite(series.x).tolist(), finite(series.y).tolist(), strict=True)
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def _intervals(series: Series) -> Sequence[tuple[float, float] | None]:
    return series.intervals or (None,) * len(series.y)


def _wider(ends: tuple[float, float]) -> tuple[float, float]:
    """Room for the marks at both ends; nothing below zero for what starts above it."""
    margin = 0.06 * (ends[1] - ends[0])
    return (max(0.0, ends[0] - margin) if ends[0] >= 0 else ends[0] - margin), ends[1] + margin


def _margin(drawn: Sequence[Series]) -> float:
    return 38 + 7.2 * max(len(_short(series.name)) for series in drawn)


def _short(name: str) -> str:
    return shorten(clean_line(name), 20)


def _spoken(figure: Figure, drawn: Sequence[Series]) -> str:
    """The chart in words: every point of every series."""
    said = []
    for series in drawn:
        points = _points(series)
        shown = [
            f"{figure.rows[int(y)] if figure.rows else f'{x:.4g}'} {number(x if figure.rows else y, '')}"
            for x, y in points
        ]
        said.append(f"{series.name} ({', '.join(shown)})")
    return f"{figure.title}: {figure.x_label}{f', {figure.y_label}' if figure.y_label else ''}, of {join(said)}"
