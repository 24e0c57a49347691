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
from unimim.report.text import clean_line, number, shorten

# After Okabe and Ito: distinct under the common colour-vision deficiencies. Yellow is left out, others are darker, so
# that names in these colours can be read on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#a85c90", "#b87a00", "#2f9bd0", "#5b5b5b")
DASHES = ("", "6 3", "2 2", "8 3 2 3")


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


def color(index: int) -> str:
    """The CSS colour of series `index`."""
    slot = index % len(PALETTE)
    return f"var(--series-{slot}, {PALETTE[slot]})"


def dash(index: int) -> str:
    """The dash pattern of series `index`: the palette is used up before the pattern changes."""
    return DASHES[index // len(PALETTE) % len(DASHES)]


@dataclass(frozen=True)
class _Frame:
    """The drawing area of a chart in pixels, and the data range it shows."""

    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def _svg(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(round(width), round(height), clean_line(label)) + Markup("").join(parts) + Markup("</svg>")


def _text(x: float, y: float, content: str, anchor: str = "start", kind: str = "tick") -> Markup:
    tag = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return tag.format(kind, x, y, anchor, clean_line(content))


def _rule(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _axes(frame: _Frame, x_label: str, y_label: str) -> list[Markup]:
    parts = []
    y_values = ticks(*frame.y_range, target=4)
    for value, name in zip(y_values, tick_labels(y_values), strict=True):
        parts.append(_rule("grid", frame.left, frame.y(value), frame.right, frame.y(value)))
        parts.append(_text(frame.left - 6, frame.y(value) + 3.5, name, "end"))
    x_values = ticks(*frame.x_range, target=4)
    for value, name in zip(x_values, tick_labels(x_values), strict=True):
        parts.append(_rule("mark", frame.x(value), frame.bottom, frame.x(value), frame.bottom + 4))
        parts.append(_text(frame.x(value), frame.bottom + 16, name, "middle"))
    parts.append(_rule("axis", frame.left, frame.bottom, frame.right, frame.bottom))
    parts.append(_text(frame.right, frame.bottom + 30, x_label, "end", "label"))
    parts.append(_text(frame.left, frame.top - 8, y_label, "start", "label"))
    return parts


def _path(frame: _Frame, x: Floats, y: Floats) -> Markup:
    """The `d` of a polyline with gaps where y is NaN; far outside the chart, heights are cut for renderers."""
    steps, pen = [], "M"
    for a, b in zip(*thin(x, y), strict=True):
        if math.isfinite(b):
            steps.append(f"{pen}{frame.x(a):.1f} {max(-9999.0, min(frame.y(b), 9999.0)):.1f}")
        pen = "L" if math.isfinite(b) else "M"
    return Markup("{}").format("".join(steps))


def _stroke(frame: _Frame, line: Line) -> Markup:
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


def _hover(frame: _Frame, line: Line) -> Markup:
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


def _spread(heights: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """`heights` moved apart until neighbours are `gap` away, in the same order and within [top, bottom] if they fit."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [0.0] * len(heights)
    previous = top - gap
    for i in order:
        previous = placed[i] = max(heights[i], previous + gap)
    limit = bottom + gap
    for i in reversed(order):
        limit = placed[i] = min(placed[i], limit - gap)
    return placed


def _name(line: Line) -> str:
    return shorten(clean_line(line.label), 20)


def _margin(lines: Sequence[Line]) -> float:
    """Room for the longest name, at the width of a wide font."""
    return 30 + 7.6 * max(len(_name(line)) for line in lines)


def _end_labels(frame: _Frame, lines: Sequence[Line]) -> list[Markup]:
    """The name of each curve at its right end, after a stroke of its colour and pattern."""
    ends = [float(line.y[np.isfinite(line.y)][-1]) for line in lines]
    heights = _spread([frame.y(end) for end in ends], 15.0, frame.top, frame.bottom)
    key = Markup('<path class="line" d="M{:.1f} {:.1f}h12" style="stroke:{}" stroke-dasharray="{}"/>')
    parts = []
    for line, height in zip(lines, heights, strict=True):
        parts.append(key.format(frame.right + 8, height, color(line.color), dash(line.color)))
        parts.append(_text(frame.right + 25, height + 4, _name(line), kind="name"))
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
        return _svg(
            width, height, label, [_text(width / 2, height / 2, "no finite value was logged", "middle", "label")]
        )
    low, high = bounds([line.y for line in drawn])
    margin = 0.06 * (high - low)
    frame = _Frame(
        left=46,
        top=26,
        right=width - (_margin(drawn) if named else 14),
        bottom=height - 36,
        x_range=bounds([line.x for line in drawn]),
        y_range=(0.0 if 0 <= low < margin else low - margin, high + margin),
    )
    parts = _axes(frame, x_label, y_label)
    parts += [_stroke(frame, line) for line in drawn]
    parts += [_hover(frame, line) for line in drawn]
    return _svg(width, height, label, parts + (_end_labels(frame, drawn) if named else []))


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
    frame = _Frame(left, 6, width - right, 6 + row * len(bars), (min(low, 0.0), max(high, 0.0)), (0, 1))
    values = ticks(*frame.x_range, target=5)
    parts = []
    for value, name in zip(values, tick_labels(values), strict=True):
        parts.append(_rule("grid", frame.x(value), frame.top, frame.x(value), frame.bottom))
        parts.append(_text(frame.x(value), frame.bottom + 16, name, "middle"))
    middles = [frame.top + row * (i + 0.5) for i in range(len(bars))]
    parts += [_bar(frame, bar, middle, unit) for bar, middle in zip(bars, middles, strict=True)]
    floors = [frame.x(bar.value) for bar in bars if bar.color is None]
    parts += [_rule("floor", x, frame.top, x, frame.bottom) for x in floors]
    parts += [_bar_value(frame, bar, middle, unit) for bar, middle in zip(bars, middles, strict=True)]
    parts.append(_rule("axis", frame.x(0), frame.top, frame.x(0), frame.bottom))
    return _svg(width, frame.bottom + 24, label, parts)


def _bar(frame: _Frame, bar: Bar, middle: float, unit: str) -> Markup:
    start, end = sorted((frame.x(0), frame.x(bar.value)))
    fill = "var(--baseline, #8a8a8a)" if bar.color is None else color(bar.color)
    name = clean_line(bar.label)
    rect = Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="16" rx="1.5" style="fill:{}"><title>{}</title></rect>'
    )
    parts = [
        _text(frame.left - 10, middle + 4, shorten(name, 19), "end", "name"),
        rect.format(start, middle - 8, end - start, fill, f"{name}: {number(bar.value, unit)}"),
    ]
    if bar.interval is not None:
        low, high = (frame.x(x) for x in bar.interval)
        parts.append(_rule("whisker", low, middle, high, middle))
        parts += [_rule("whisker", x, middle - 4, x, middle + 4) for x in (low, high)]
    dot = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.2"/>')
    parts += [dot.format(frame.x(value), middle) for value in (bar.dots if len(bar.dots) > 1 else ())]
    return Markup("").join(parts)


def _bar_value(frame: _Frame, bar: Bar, middle: float, unit: str) -> Markup:
    edge = max(0.0, bar.value, *(bar.interval or ()))
    return _text(frame.x(edge) + 7, middle + 4, number(bar.value, unit), kind="value")


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
    frame = _Frame(left, 6, width - right, bottom, (min(low, 0.0) - margin, max(high, 0.0) + margin), (0, 1))
    values = ticks(*frame.x_range, target=4)
    parts = []
    for value, name in zip(values, tick_labels(values), strict=True):
        parts.append(_rule("grid", frame.x(value), frame.top, frame.x(value), frame.bottom))
        parts.append(_text(frame.x(value), frame.bottom + 16, name, "middle"))
    parts.append(_rule("axis", frame.x(0), frame.top, frame.x(0), frame.bottom))
    for i, lead in enumerate(leads):
        parts.append(_lead(frame, lead, frame.top + row * (i + 0.5), unit))
    return _svg(width, frame.bottom + 24, label, parts)


def _lead(frame: _Frame, lead: Bar, middle: float, unit: str) -> Markup:
    paint = "var(--baseline, #8a8a8a)" if lead.color is None else color(lead.color)
    name = clean_line(lead.label)
    parts = [_text(frame.left - 10, middle + 4, shorten(name, 18), "end", "name")]
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
