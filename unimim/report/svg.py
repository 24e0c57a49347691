"""What charts are drawn with: a frame that maps data to pixels, rules, words and axes, and the colours of series."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from unimim.report.scales import tick_labels, ticks
from unimim.report.text import clean_line, shorten

# After Okabe and Ito: distinct under the common colour-vision deficiencies. Yellow is left out, others are darker, so
# that names in these colours can be read on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#a85c90", "#b87a00", "#2f9bd0", "#5b5b5b")
DASHES = ("", "6 3", "2 2", "8 3 2 3")


def color(index: int) -> str:
    """The CSS colour of series `index`."""
    slot = index % len(PALETTE)
    return f"var(--series-{slot}, {PALETTE[slot]})"


def dash(index: int) -> str:
    """The dash pattern of series `index`: the palette is used up before the pattern changes."""
    return DASHES[index // len(PALETTE) % len(DASHES)]


@dataclass(frozen=True)
class Frame:
    """The drawing area of a chart in pixels, and the data range it shows."""

    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def fit(self, label: str) -> str:
        """As much of a label as the frame has room for, at the width of a wide font."""
        return shorten(clean_line(label), int((self.right - self.left) / 6.6))

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def svg(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(round(width), round(height), clean_line(label)) + Markup("").join(parts) + Markup("</svg>")


def words(x: float, y: float, content: str, anchor: str = "start", kind: str = "tick") -> Markup:
    tag = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return tag.format(kind, x, y, anchor, clean_line(content))


def rule(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def axes(frame: Frame, x_label: str, y_label: str) -> list[Markup]:
    parts = []
    y_values = ticks(*frame.y_range, target=4)
    for value, name in zip(y_values, tick_labels(y_values), strict=True):
        parts.append(rule("grid", frame.left, frame.y(value), frame.right, frame.y(value)))
        parts.append(words(frame.left - 6, frame.y(value) + 3.5, name, "end"))
    x_values = ticks(*frame.x_range, target=4)
    for value, name in zip(x_values, tick_labels(x_values), strict=True):
        parts.append(rule("mark", frame.x(value), frame.bottom, frame.x(value), frame.bottom + 4))
        parts.append(words(frame.x(value), frame.bottom + 16, name, "middle"))
    parts.append(rule("axis", frame.left, frame.bottom, frame.right, frame.bottom))
    parts.append(words(frame.right, frame.bottom + 30, frame.fit(x_label), "end", "label"))
    parts.append(words(frame.left, frame.top - 8, frame.fit(y_label), "start", "label"))
    return parts


def spread(heights: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
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
