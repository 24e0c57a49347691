"""Pairs that differ in one axis, and the figures that follow from a report or are given to it."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimim.report import Cost, Figure, Provenance, Score, Series, render, shape_bias
from unimim.report.effects import axis_of, effects, hedges
from unimim.report.figures import efforts, maskings, shape_biases
from unimim.report.scatter import figure_chart
from unimim.report.verdict import Estimate


def with_settings(entry, **changes):
    """Changes are written a__b for the setting a.b."""
    base = {
        "student.dim": "128",
        "masks.main.name": "random",
        "masks.main.ratio": "0.75",
        "terms.mim.norm.name": "layer",
    }
    base |= {"batch": "64", "epochs": "5.0", "seed": "0"} | {
        key.replace("__", "."): str(v) for key, v in changes.items()
    }
    return replace(entry, provenance=tuple(Provenance(path, value, "") for path, value in base.items()))


@pytest.mark.parametrize(
    ("setting", "axis"),
    [
        ("terms.mim.teacher.name", "teacher"),
        ("terms.cls.loss.beta", "loss"),
        ("terms.mim.where", ""),
        ("masks.main.ratio", "mask"),
        ("student.dim", "student"),
        ("optimization.lr", ""),
        ("batch", ""),
    ],
)
def test_axis_of_a_setting(setting, axis):
    assert axis_of(setting) == axis


def test_only_pairs_that_differ_in_one_axis_alone_are_effects(linear, recipe, comparison):
    a = with_settings(recipe("a", linear(60)))
    norm = with_settings(recipe("b", linear(64)), terms__mim__norm__name="identity")
    confounded = with_settings(recipe("c", linear(70)), terms__mim__norm__name="batch", batch=32)
    two = with_settings(recipe("d", linear(70)), terms__mim__norm__name="identity", student__dim=64)
    seed = with_settings(recipe("e", linear(61)), seed=7)
    found = effects(comparison(a, norm, confounded, two, seed, recipe("f", linear(9))))
    pairs = [(effect.axis, effect.first.name, effect.second.name) for effect in found]
    assert pairs == [("norm", "a", "b"), ("norm", "b", "e"), ("student", "b", "d")]
    (gain,) = found[0].gains
    assert gain.difference.value == 4
    assert gain.difference.interval == pytest.approx((4 - math.hypot(1, 1), 4 + math.hypot(1, 1)))
    assert gain.size is None
    assert [(c.before, c.after) for c in found[0].told] == [("layer", "identity")]


def test_effect_size_is_hedges_g():
    # s = 1 in both groups, d = 2, J = 1 - 3 / (4 * 4 - 1) = 0.8
    assert hedges(Estimate(60, None, (59, 60, 61)), Estimate(62, None, (61, 62, 63))) == pytest.approx(1.6)
    assert hedges(Estimate(60, None, (60, 60)), Estimate(62, None, (62, 62))) is None
    assert hedges(Estimate(60, None, (60,)), Estimate(62, None, (61, 63))) is None


def test_axis_effects_are_on_the_page_with_sign_interval_and_size(linear, recipe, comparison):
    a = with_settings(recipe("a", linear(60, 0.1, 0), linear(61, 0.1, 1)))
    b = with_settings(recipe("b", linear(50, 0.1, 0), linear(51, 0.1, 1)), terms__mim__norm__name="identity")
    page = render(comparison(a, b))
    assert "terms.mim.norm.name: layer → identity" in page
    assert "−10.0</span>" in page
    assert "<i>g</i> = −8.1" in page


def test_recipes_that_differ_only_in_the_mask_make_figure_2(linear, recipe, comparison):
    entries = [
        with_settings(recipe(f"{name}{ratio}", linear(value)), masks__main__name=name, masks__main__ratio=ratio)
        for name, ratio, value in [("block", 0.6, 52), ("block", 0.2, 50), ("random", 0.8, 55), ("random", 0.4, 51)]
    ]
    other = with_settings(recipe("x", linear(1)), masks__main__ratio=0.5, batch=8)
    (figure,) = maskings(comparison(*entries, other))
    assert {s.name: (s.x, s.y) for s in figure.series} == {
        "block mask": ((0.2, 0.6), (50, 52)),
        "random mask": ((0.4, 0.8), (51, 55)),
    }
    assert "Figure 2" in figure.paper
    assert maskings(comparison(entries[0], other)) == []


def test_runs_of_one_recipe_of_different_length_are_one_line(linear, recipe, comparison):
    def run(name, epochs, steps, seconds, value, **changes):
        entry = with_settings(recipe(name, linear(value)), epochs=epochs, **changes)
        return replace(entry, cost=Cost(seconds=seconds, steps=steps))

    runs = [
        run("long", 10, 100, 7200, 60),
        run("short", 5, 50, 3600, 50),
        run("other", 5, 50, 1800, 40, student__dim=64),
    ]
    steps, hours = efforts(comparison(*runs))
    assert [(s.x, s.y) for s in steps.series] == [((50, 100), (50, 60)), ((50,), (40,))]
    assert [s.x for s in hours.series] == [(1, 2), (0.5,)]
    assert [figure.x_label for figure in efforts(comparison(*runs[1:]))] == ["hours of training"]


def test_shape_bias_is_drawn_as_the_paper_does():
    biases = {"teacher": {"cat": 0.25, "dog": 0.5}, "student": {"cat": 0.75, "dog": math.nan}}
    figure = shape_bias(biases, {"teacher": 0.4, "student": 0.75})
    assert figure.rows == ("cat", "dog")
    assert [(s.x, s.y, s.level) for s in figure.series] == [((0.75, 0.5), (0, 1), 0.6), ((0.25,), (0,), 0.25)]
    root = ElementTree.fromstring(figure_chart(figure))
    lines = [float(node.get("x1")) for node in root.iter("line") if node.get("class") == "level"]
    assert len(lines) == 2
    assert lines[0] > lines[1], "more shape lies further to the left"


def test_lengths_and_rows_must_fit():
    with pytest.raises(ValueError, match=r"'a': 2 x, 1 y"):
        Series("a", (0, 1), (1,))
    with pytest.raises(ValueError, match=r"\['a'\] lie on rows other than 0 to 0"):
        Figure("f", "x", "y", (Series("a", (0.5,), (1,)),), rows=("cat",))


anything = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=60)
@given(st.lists(st.lists(st.tuples(anything, anything), max_size=8), max_size=4))
def test_any_points_give_a_well_formed_chart_with_finite_coordinates(lines):
    series = tuple(Series(f"s{i}", tuple(x for x, _ in s), tuple(y for _, y in s)) for i, s in enumerate(lines))
    root = ElementTree.fromstring(figure_chart(Figure("f", "x", "y", series)))
    places = " ".join(node.get(name, "") for node in root.iter() for name in ("d", "x", "y", "x1", "y1", "transform"))
    assert not re.search("nan|inf", places)


def test_figures_stand_on_the_page_with_what_the_paper_shows_said_once(recipe, comparison):
    figure = shape_bias({"mae": {"cat": 0.3}}, {"mae": 0.3}, note="16 classes")
    page = render(replace(comparison(recipe("a")), figures=(figure, replace(figure, title="Again"))))
    assert page.count("16 classes") == 2
    assert page.count("moves the student towards shape") == 1
    assert 'aria-label="Shape bias by category: ' in page


def test_scores_of_shape_bias_become_the_papers_figure(recipe, comparison):
    scores = [Score("shape-bias", metric, value) for metric, value in (("shape bias", 40.0), ("shape bias, cat", 30.0))]
    others = [Score("shape-bias", "shape bias of people", 95.0), Score("shape-bias", "shape bias of people, cat", 90.0)]
    (figure,) = shape_biases(comparison(recipe("a", *scores, *others)))
    assert figure.rows == ("cat",)
    levels = {series.name: (series.level, series.x) for series in figure.series}
    assert levels == {"A": (0.6, (0.7,)), "A of people": (pytest.approx(0.05), (pytest.approx(0.1),))}
    assert shape_biases(comparison(recipe("a", Score("linear", "top-1", 3.0)))) == []
