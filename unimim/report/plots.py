"""Charts as SVG strings: small pure functions, no state, no dependency.

Text passes through `markupsafe.Markup` formatting, so a name cannot become markup. Colours are the CSS variables of the
page with the light value as fall-back. Colour is never the only difference: curves and bars carry their names.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from unimim.report.scales import Floats, bounds, finite, thin, tick_labels, ticks
from unimim.report.svg import Frame, axes, color, dash, rule, spread, svg, words
from unimim.report.text import clean_line, number, shorten


@dataclass(frozen=True)
class Line:
    """A curve to draw: x and y (n,), y may be NaN; `color` indexes `PALETTE`, `raw` (n,) is drawn faintly behind."""

    label: str
    x: Floats
    y: Floats
    color: int
    raw: Floats | None = None


@dataclass(frozen=True)
class Bar:
    """A bar with its 95 % interval, and the values of single seeds as dots; `color` None draws it as a baseline."""

    label: str
    value: float
    interval: tuple[float, float] | None
    dots: tuple[float, ...] = ()
    color: int | None = None


def _path(frame: Frame, x: Floats, y: Floats) -> Markup:
    """The `d` of a polyline with gaps where y is NaN; far outside the chart, heights are cut for renderers."""
    steps, pen = [], "M"
    for a, b in zip(*thin(x, y), strict=True):
        if math.isfinite(b):
            steps.append(f"{pen}{frame.x(a):.1f} {max(-9999.0, min(frame.y(b), 9999.0)):.1f}")
        pen = "L" if math.isfinite(b) else "M"
    return Markup("{}").format("".join(steps))


def _stroke(frame: Frame, line: Line) -> Markup:
    """The raw values faintly, the curve over them, both cut at the frame by a nested <svg>."""
    box = Markup(
        '<svg x="{0:.1f}" y="{1:.1f}" width="{2:.1f}" height="{3:.1f}" viewBox="{0:.1f} {1:.1f} {2:.1f} {3:.1f}">'
    )
    parts = [box.format(frame.left, frame.top, frame.right - frame.left, frame.bottom - frame.top)]
    path = Markup('<path class="{}" d="{}" style="stroke:{}" stroke-dasharray="{}"/>')
    if line.raw is not None:
        parts.append(path.format("raw", _path(frame, line.x, line.raw), color(line.color), ""))
    parts.append(path.format("line", _path(frame, line.x, line.y), color(line.color), dash(line.color)))
    return Markup("").join([*parts, Markup("</svg>")])


def _hover(frame: Frame, line: Line) -> Markup:
    """Invisible points that show their value when pointed at, and a cross where the curve stops being a number."""
    known = np.flatnonzero(np.isfinite(line.y))
    chosen = known[np.unique(np.linspace(0, len(known) - 1, min(25, len(known))).astype(int))] if len(known) else known
    point = Markup('<circle class="point" cx="{:.1f}" cy="{:.1f}" r="6" style="fill:{}"><title>{}</title></circle>')
    name = clean_line(line.label)
    parts = [
        point.format(frame.x(x), frame.y(y), color(line.color), f"{name}, step {x:.0f}: {number(y, '')}")
        for x, y in zip(line.x[chosen], line.y[chosen], strict=True)
    ]
    lost = np.flatnonzero(~np.isfinite(line.y))
    if len(lost):
        last = known[known < lost[0]]
        height = frame.y(float(line.y[last[-1]])) if len(last) else (frame.top + frame.bottom) / 2
        cross = Markup('<g class="lost"><title>{}</title><path d="M{:.1f} {:.1f}l8 8m0 -8l-8 8"/></g>')
        title = f"{name}: not a finite number at step {line.x[lost[0]]:.0f}"
        parts.append(cross.format(title, frame.x(float(line.x[lost[0]])) - 4, height - 4))
    return Markup("").join(parts)


def _name(line: Line) -> str:
    return shorten(clean_line(line.label), 20)


def _margin(lines: Sequence[Line]) -> float:
    """Room for the longest name, at the width of a wide font."""
    return 30 + 7.6 * max(len(_name(line)) for line in lines)


def _end_labels(frame: Frame, lines: Sequence[Line]) -> list[Markup]:
    """The name of each curve at its right end, after a stroke of its colour and pattern."""
    ends = [float(line.y[np.isfinite(line.y)][-1]) for line in lines]
    heights = spread([frame.y(end) for end in ends], 15.0, frame.top, frame.bottom)
    key = Markup('<path class="line" d="M{:.1f} {:.1f}h12" style="stroke:{}" stroke-dasharray="{}"/>')
    parts = []
    for line, height in zip(lines, heights, strict=True):
        parts.append(key.format(frame.right + 8, height, color(line.color), dash(line.color)))
        parts.append(words(frame.right + 25, height + 4, _name(line), kind="name"))
    return parts


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    y_label: str,
    x_label: str = "step",
    size: tuple[int, int] = (960, 330),
    named: bool = True,
) -> Markup:
    """Curves over a common axis; the y range is that of the curves, raw values beyond it are cut.

    Args:
        lines: curves in data units.
        label: description for readers who cannot see the chart.
        size: (width, height) in pixels of the view box.
        named: whether each curve carries its name at its right end.

    Returns:
        One <svg> element. Curves without a finite value are left out; without any, the chart says so.
    """
    width, height = size
    drawn = [line for line in lines if np.isfinite(line.y).any()]
    if not drawn:
        return svg(
            width, height, label, [words(width / 2, height / 2, "no finite value was logged", "middle", "label")]
        )
    low, high = bounds([line.y for line in drawn])
    margin = 0.06 * (high - low)
    frame = Frame(
        left=46,
        top=26,
        right=width - (_margin(drawn) if named else 14),
        bottom=height - 36,
        x_range=bounds([line.x for line in drawn]),
        y_range=(0.0 if 0 <= low < margin else low - margin, high + margin),
    )
    parts = axes(frame, x_label, y_label)
    parts += [_stroke(frame, line) for line in drawn]
    parts += [_hover(frame, line) for line in drawn]
    return svg(width, height, label, parts + (_end_labels(frame, drawn) if named else []))


def bar_chart(bars: Sequence[Bar], *, label: str, unit: str, width: int = 520) -> Markup:
    """Horizontal bars from zero with intervals; a dashed line continues each baseline through all bars.

    Args:
        bars: from top to bottom, all values finite.
        label: description for readers who cannot see the chart.
        unit: of the values, decides how they are written.

    Returns:
        One <svg> element.
    """
    row, left, right = 30, 150, 58
    reach = [0.0, *(bar.value for bar in bars), *(x for bar in bars for x in bar.interval or ())]
    low, high = bounds([finite(reach)])
    frame = Frame(left, 6, width - right, 6 + row * len(bars), (min(low, 0.0), max(high, 0.0)), (0, 1))
    values = ticks(*frame.x_range, target=5)
    parts = []
    for value, name in zip(values, tick_labels(values), strict=True):
        parts.append(rule("grid", frame.x(value), frame.top, frame.x(value), frame.bottom))
        parts.append(words(frame.x(value), frame.bottom + 16, name, "middle"))
    middles = [frame.top + row * (i + 0.5) for i in range(len(bars))]
    parts += [_bar(frame, bar, middle, unit) for bar, middle in zip(bars, middles, strict=True)]
    floors = [frame.x(bar.value) for bar in bars if bar.color is None]
    parts += [rule("floor", x, frame.top, x, frame.bottom) for x in floors]
    parts += [_bar_value(frame, bar, middle, unit) for bar, middle in zip(bars, middles, strict=True)]
    parts.append(rule("axis", frame.x(0), frame.top, frame.x(0), frame.bottom))
    return svg(width, frame.bottom + 24, label, parts)


def _bar(frame: Frame, bar: Bar, middle: float, unit: str) -> Markup:
    start, end = sorted((frame.x(0), frame.x(bar.value)))
    fill = "var(--baseline, #8a8a8a)" if bar.color is None else color(bar.color)
    name = clean_line(bar.label)
    rect = Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="16" rx="1.5" style="fill:{}"><title>{}</title></rect>'
    )
    parts = [
        words(frame.left - 10, middle + 4, shorten(name, 19), "end", "name"),
        rect.format(start, middle - 8, end - start, fill, f"{name}: {number(bar.value, unit)}"),
    ]
    if bar.interval is not None:
        low, high = (frame.x(x) for x in bar.interval)
        parts.append(rule("whisker", low, middle, high, middle))
        parts += [rule("whisker", x, middle - 4, x, middle + 4) for x in (low, high)]
    dot = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.2"/>')
    parts += [dot.format(frame.x(value), middle) for value in (bar.dots if len(bar.dots) > 1 else ())]
    return Markup("").join(parts)


def _bar_value(frame: Frame, bar: Bar, middle: float, unit: str) -> Markup:
    edge = max(0.0, bar.value, *(bar.interval or ()))
    return words(frame.x(edge) + 7, middle + 4, number(bar.value, unit), kind="value")


def lead_chart(leads: Sequence[Bar], *, label: str, unit: str, width: int = 400) -> Markup:
    """Differences to zero: a point with its interval for each. An interval that crosses the zero line is hollow.

    Args:
        leads: from top to bottom, all values finite; `value` and `interval` are differences.
        label: description for readers who cannot see the chart.
        unit: of the differences, decides how they are written.

    Returns:
        One <svg> element.
    """
    row, left, right = 26, 140, 16
    reach = [0.0, *(lead.value for lead in leads), *(x for lead in leads for x in lead.interval or ())]
    low, high = bounds([finite(reach)])
    margin = 0.04 * (high - low)
    bottom = 6.0 + row * len(leads)
    frame = Frame(left, 6, width - right, bottom, (min(low, 0.0) - margin, max(high, 0.0) + margin), (0, 1))
    values = ticks(*frame.x_range, target=4)
    parts = []
    for value, name in zip(values, tick_labels(values), strict=True):
        parts.append(rule("grid", frame.x(value), frame.top, frame.x(value), frame.bottom))
        parts.append(words(frame.x(value), frame.bottom + 16, name, "middle"))
    parts.append(rule("axis", frame.x(0), frame.top, frame.x(0), frame.bottom))
    for i, lead in enumerate(leads):
        parts.append(_lead(frame, lead, frame.top + row * (i + 0.5), unit))
    return svg(width, frame.bottom + 24, label, parts)


def _lead(frame: Frame, lead: Bar, middle: float, unit: str) -> Markup:
    paint = "var(--baseline, #8a8a8a)" if lead.color is None else color(lead.color)
    name = clean_line(lead.label)
    parts = [words(frame.left - 10, middle + 4, shorten(name, 18), "end", "name")]
    if lead.interval is not None:
        low, high = (frame.x(x) for x in lead.interval)
        line = Markup('<line class="span" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" style="stroke:{}"/>')
        parts.append(line.format(low, middle, high, middle, paint))
    crosses = lead.interval is None or lead.interval[0] <= 0 <= lead.interval[1]
    point = Markup(
        '<circle class="lead" cx="{:.1f}" cy="{:.1f}" r="4.5" style="stroke:{};fill:{}"><title>{}</title></circle>'
    )
    fill = "var(--page, #fff)" if crosses else paint
    parts.append(point.format(frame.x(lead.value), middle, paint, fill, f"{name}: {number(lead.value, unit)}"))
    return Markup("").join(parts)
