import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimim.report import Score, Skipped, verdict
from unimim.report.verdict import Estimate, Task, difference, estimate, ordered, tasks

TASK = Task("linear probe", "top-1", "%")


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_clear_win_with_seeds(linear, recipe, comparison):
    best = recipe("a", *(linear(66 + d, seed=i) for i, d in enumerate((-0.2, 0, 0.2))))
    second = recipe("b", *(linear(60 + d, seed=i) for i, d in enumerate((-0.2, 0, 0.2))))
    found = verdict(comparison(second, best))
    assert found.status == "clear"
    assert plain(found.headline) == "A is best at linear probe: 66.0 % top-1, 6.0 points above B."
    assert "At least 3 seeds" in found.remarks[1]


def test_clear_distance_on_one_seed_is_not_called_best(linear, recipe, comparison):
    found = verdict(comparison(recipe("a", linear(66)), recipe("b", linear(60))))
    assert found.status == "one seed"
    assert "best" not in found.headline
    assert found.headline.endswith("single seed.")
    assert any(
        remark.startswith("One seed: differences under the interval are not evidence") for remark in found.remarks
    )


def test_tie_names_everyone_within_the_interval(linear, recipe, comparison):
    found = verdict(comparison(recipe("a", linear(61)), recipe("b", linear(60.5)), recipe("c", linear(50))))
    assert found.status == "tie"
    assert found.headline.startswith("No recipe is clearly best at linear probe")
    assert plain(found.remarks[0]) == "A leads, but not clearly, B by 0.5 points (95 % interval −0.9 to 1.9)."
    assert found.remarks[1].startswith("A clearly leads C by 11.0")


def test_without_intervals_nothing_is_claimed(linear, recipe, comparison):
    found = verdict(comparison(recipe("a", linear(90, None)), recipe("b", linear(10, None))))
    assert found.status == "unjudged"
    assert "without intervals that is no evidence" in found.headline


def test_single_recipe_is_reported_alone(linear, recipe, comparison):
    found = verdict(comparison(recipe("a", linear(61))))
    assert (found.status, plain(found.headline)) == ("alone", "A reaches 61.0 % top-1 at linear probe.")


def test_no_score_at_all(linear, recipe, comparison):
    found = verdict(comparison(recipe("a", linear(math.nan, None)), skipped=(Skipped("beit", "no weights"),)))
    assert (found.status, found.headline) == ("none", "No recipe finished with a score.")
    assert found.remarks == ("Skipped, with reasons in section 8: beit.",)


def test_baselines_are_never_ranked(linear, recipe, comparison):
    random = replace(recipe("r", linear(80)), kind="random")
    found = verdict(comparison(recipe("a", linear(61)), random))
    assert found.status == "alone"
    assert plain(found.remarks[0]) == "No recipe beats the randomly initialised student, 19.0 points above A."


@pytest.mark.parametrize(("floor", "words"), [(60.5, "not clearly above raw pixels"), (40.0, "21.0 points")])
def test_distance_to_raw_pixels(linear, recipe, comparison, floor, words):
    pixels = replace(recipe("p", linear(floor)), kind="pixels")
    assert words in plain(verdict(comparison(recipe("a", linear(61)), pixels)).remarks[0])


def test_different_protocols_are_pointed_out(linear, recipe, comparison):
    found = verdict(comparison(recipe("a", linear(61)), recipe("b", linear(50, protocol="class token"))))
    assert any("protocol differs" in remark for remark in found.remarks)


def test_recipes_without_a_score_are_named_and_listed_after_the_others(linear, recipe, comparison):
    report = comparison(recipe("a", linear(math.inf, None)), recipe("b", linear(50)), recipe("c", linear(60)))
    assert [entry.name for entry in ordered(report)] == ["c", "b", "a"]
    assert verdict(report).remarks[-1] == "Left out for want of a score: A."


def test_linear_probe_is_the_main_task_wherever_it_stands(linear, recipe, comparison):
    knn = Score("k-NN", "top-1", 40.0)
    assert [task.name for task in tasks(comparison(recipe("a", knn, linear(50))))] == ["linear probe", "k-NN"]
    assert [task.name for task in tasks(comparison(recipe("a", knn)))] == ["k-NN"]


def test_interval_over_seeds_is_student_t(linear, recipe):
    found = estimate(recipe("a", *(linear(v, 0.1, i) for i, v in enumerate((60, 61, 62)))), TASK)
    assert found.value == pytest.approx(61)
    # t(0.975, 2) = 4.3027, s = 1, n = 3
    assert found.interval == pytest.approx((61 - 4.303 / 3**0.5, 61 + 4.303 / 3**0.5), abs=1e-3)


def test_equal_seeds_keep_the_interval_of_the_test_sample(linear, recipe):
    assert estimate(recipe("a", linear(60, 1.5, 0), linear(60, 1.5, 1)), TASK).interval == pytest.approx((58.5, 61.5))


def test_difference_matches_newcombe():
    gap = difference(Estimate(61, (60, 62.5), (61,)), Estimate(58, (57.2, 59), (58,)), "%")
    assert gap.value == 3
    assert gap.interval == pytest.approx((3 - math.hypot(1, 1), 3 + math.hypot(1.5, 0.8)))


estimates = st.builds(
    lambda value, low, high: Estimate(value, (value - low, value + high), (value,)),
    st.floats(-100, 100),
    st.floats(0, 20),
    st.floats(0, 20),
)


@given(estimates, estimates)
def test_difference_is_antisymmetric(a, b):
    forth, back = difference(a, b, "%"), difference(b, a, "%")
    assert forth.value == -back.value
    assert forth.interval == pytest.approx((-back.interval[1], -back.interval[0]))
    assert not (forth.is_clear and back.is_clear)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6), st.floats(0, 10))
def test_headline_names_the_highest_mean_and_never_claims_an_overlap(linear, recipe, comparison, values, half):
    entries = [recipe(f"r{i}", linear(v, half, 0), linear(v, half, 1)) for i, v in enumerate(values)]
    found = verdict(comparison(*entries))
    first, second = sorted(values, reverse=True)[:2]
    assert f"R{values.index(first)} " in found.headline
    assert (found.status == "clear") == (first - second > math.hypot(half, half))
