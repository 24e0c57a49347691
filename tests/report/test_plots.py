import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimim.report import plots, scales

anything = st.floats(allow_nan=True, allow_infinity=True)


def line(values, label="loss", color=0):
    y = scales.finite(values)
    return plots.Line(label, np.arange(float(len(y))), scales.smooth(y, 3), color, y)


def coordinates(svg):
    """Every number that positions something, in chart units."""
    root = ElementTree.fromstring(svg)
    names = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"}
    plain = [float(node.get(name)) for node in root.iter() for name in names & set(node.keys())]
    paths = " ".join(node.get("d", "") for node in root.iter("path"))
    return plain + [float(number) for number in re.findall(r"-?[\d.]+", paths)]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e3), st.integers(3, 8))
def test_ticks_are_round_even_and_inside(low, relative, target):
    span = relative * max(1.0, abs(low))
    high = low + span
    found = scales.ticks(low, high, target)
    assert 1 <= len(found) <= target + 1
    steps = np.diff(found)
    slack = 1e-6 * span
    assert all(low - slack <= value <= high + slack for value in found)
    if len(steps):
        assert np.allclose(steps, steps[0], rtol=1e-3)
        mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
        assert min(abs(mantissa - round_number) for round_number in (1, 2, 5)) < 1e-2


@pytest.mark.parametrize(
    ("values", "labels"),
    [([0, 0.5, 1.0], ["0.0", "0.5", "1.0"]), ([0, 5000, 10000], ["0", "5k", "10k"]), ([-2, 0, 2], ["−2", "0", "2"])],
)
def test_tick_labels(values, labels):
    assert scales.tick_labels(values) == labels


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(1, 60))
def test_smoothing_stays_within_the_values_and_keeps_constants(values, window):
    values = np.array(values)
    found = scales.smooth(values, window)
    assert found.shape == values.shape
    assert found.min() >= values.min() - 1e-6
    assert found.max() <= values.max() + 1e-6
    assert np.allclose(scales.smooth(np.full(9, 3.5), window), 3.5)


def test_smoothing_neither_fills_nor_spreads_a_gap():
    found = scales.smooth(np.array([1.0, 1.0, np.nan, 3.0, 3.0]), 3)
    assert np.array_equal(found, [1.0, 1.0, np.nan, 3.0, 3.0], equal_nan=True)


def test_thinning_keeps_ends_and_spikes():
    y = np.zeros(10_000)
    y[4321], y[8765] = 9.0, -9.0
    x, thinned = scales.thin(np.arange(10_000.0), y)
    assert len(x) < 1000
    assert (x[0], x[-1]) == (0, 9999)
    assert (thinned.max(), thinned.min()) == (9.0, -9.0)


@settings(max_examples=60)
@given(st.lists(st.lists(anything, max_size=30), min_size=1, max_size=4), st.booleans())
def test_any_curve_gives_a_well_formed_chart_with_finite_coordinates(curves, named):
    svg = plots.line_chart([line(curve) for curve in curves], label="losses", y_label="loss", named=named)
    assert all(math.isfinite(value) and abs(value) < 1e5 for value in coordinates(svg))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e3)), min_size=1, max_size=6))
def test_any_scores_give_bars_inside_the_frame(values):
    bars = [plots.Bar(f"r{i}", v, (v - half, v + half), color=i) for i, (v, half) in enumerate(values)]
    for chart in (plots.bar_chart, plots.lead_chart):
        assert all(-10 <= value <= 600 for value in coordinates(chart(bars, label="scores", unit="%")))


def test_bar_length_is_proportional_to_its_value_from_zero():
    bars = [plots.Bar(name, value, None, color=0) for name, value in (("a", 80.0), ("b", 40.0), ("c", 0.0))]
    root = ElementTree.fromstring(plots.bar_chart(bars, label="scores", unit="%"))
    a, b, c = (float(rect.get("width")) for rect in root.iter("rect"))
    assert a == pytest.approx(2 * b, abs=0.2)
    assert c == 0


def test_lead_whose_interval_contains_zero_is_hollow():
    leads = [plots.Bar("clear", 3.0, (1.0, 5.0), color=0), plots.Bar("level", 1.0, (-1.0, 3.0), color=1)]
    root = ElementTree.fromstring(plots.lead_chart(leads, label="leads", unit="%"))
    clear, level = (circle.get("style") for circle in root.iter("circle"))
    assert "fill:var(--page" not in clear
    assert "fill:var(--page" in level


def test_divergence_is_marked_at_its_step():
    svg = plots.line_chart([line([3.0, 2.0, 1.0, math.nan, math.nan])], label="losses", y_label="loss")
    assert "loss: not a finite number at step 3" in svg


def test_chart_without_numbers_says_so():
    assert "no finite value" in plots.line_chart([line([math.nan, math.inf])], label="losses", y_label="loss")


def test_names_at_curve_ends_do_not_overlap():
    svg = plots.line_chart([line([2.0, 1.0 + i / 1000], f"r{i}", i) for i in range(8)], label="losses", y_label="loss")
    root = ElementTree.fromstring(svg)
    heights = sorted(float(t.get("y")) for t in root.iter("text") if t.get("class") == "name")
    assert len(heights) == 8
    assert min(np.diff(heights)) >= 14.9


def test_colours_repeat_only_with_another_dash_pattern():
    styles = [(plots.color(i), plots.dash(i)) for i in range(25)]
    assert len(set(styles)) == 25
