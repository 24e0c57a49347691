"""Laws of schedules and of the learning rate."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from unimim import Schedule
from unimim.schedule import Optimization

values = st.floats(-10, 10)
fractions = st.floats(0, 1)
shapes = st.sampled_from(["linear", "cosine"])
untils = st.floats(0.05, 1)


@given(values, values, untils, shapes)
def test_a_schedule_begins_at_start_and_is_end_from_until_on(
    start: float, end: float, until: float, shape: str
) -> None:
    schedule = Schedule(start=start, end=end, until=until, shape=shape)
    assert schedule(0) == pytest.approx(start, abs=1e-12)
    assert schedule(until) == pytest.approx(end, abs=1e-12)
    assert schedule(1) == pytest.approx(end, abs=1e-12)
    assert schedule(until / 2) == pytest.approx((start + end) / 2, abs=1e-9), "both shapes pass the middle half way"


@given(values, values, untils, shapes, fractions, fractions)
def test_a_schedule_is_monotone_and_stays_between_its_ends(
    start: float, end: float, until: float, shape: str, a: float, b: float
) -> None:
    schedule = Schedule(start=start, end=end, until=until, shape=shape)
    first, second = schedule(min(a, b)), schedule(max(a, b))
    assert (second - first) * (end - start) >= -1e-12
    assert min(start, end) - 1e-9 <= first <= max(start, end) + 1e-9


@given(values, fractions)
def test_a_number_is_a_constant(value: float, fraction: float) -> None:
    assert Schedule.model_validate(value)(fraction) == pytest.approx(value, abs=1e-12)


@given(values, values, untils, shapes)
def test_a_schedule_survives_json(start: float, end: float, until: float, shape: str) -> None:
    schedule = Schedule(start=start, end=end, until=until, shape=shape)
    assert Schedule.model_validate_json(schedule.model_dump_json()) == schedule


@given(values, values, st.floats(0.05, 0.9), shapes, fractions)
def test_the_next_schedule_takes_over_at_until_and_runs_over_the_rest(
    start: float, end: float, until: float, shape: str, fraction: float
) -> None:
    rest = Schedule(start=end, end=3.0, until=0.5)
    schedule = Schedule(start=start, end=end, until=until, shape=shape, then=rest)
    assert Schedule.model_validate_json(schedule.model_dump_json()) == schedule
    assert schedule(1) == 3
    if fraction < until:
        assert schedule(fraction) == Schedule(start=start, end=end, until=until, shape=shape)(fraction)
    else:
        assert schedule(fraction) == rest((fraction - until) / (1 - until))


@pytest.mark.parametrize(
    "fields", [{"until": 0}, {"then": 1}, {"until": 11}, {"shape": "step"}, {"end": float("nan")}, {"ende": 1}]
)
def test_impossible_schedules_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Schedule.model_validate({"start": 0, "end": 1} | fields)


def test_data2vec_warms_the_decay_up_and_keeps_it() -> None:
    decay = Schedule(start=0.99, end=0.999, until=0.5)
    assert [decay(f) for f in (0, 0.25, 0.5, 0.9)] == pytest.approx([0.99, 0.9945, 0.999, 0.999])


policies = st.builds(
    Optimization,
    lr=st.floats(1e-5, 1),
    lr_per_256=st.booleans(),
    min_lr=st.floats(0, 1e-6),
    warmup_epochs=st.floats(0, 3),
    warmup_includes_peak=st.booleans(),
    shape=st.sampled_from(["cosine", "linear"]),
)


@given(policies, st.integers(20, 200), st.integers(1, 20), st.sampled_from([64, 256, 4096]))
def test_the_rate_rises_to_the_peak_and_falls_to_the_minimum(
    policy: Optimization, total: int, per_epoch: int, batch: int
) -> None:
    warmup = policy.warmup_epochs * per_epoch
    assume(1 < warmup < total - 2 or warmup == 0)
    peak = policy.peak(batch)
    rates = [policy.rate(step, total, per_epoch, batch) for step in range(total + 1)]
    top = math.ceil(warmup)
    assert all(a <= b + 1e-12 for a, b in pairwise(rates[:top]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[top:]))
    assert rates[0] == (pytest.approx(peak) if warmup == 0 else 0)
    assert rates[-1] == pytest.approx(policy.min_lr, abs=1e-12)
    assert max(rates) <= peak * (1 + 1e-12)
    if not policy.warmup_includes_peak:
        before, after = (policy.rate(warmup + side, total, per_epoch, batch) for side in (-1e-6, 1e-6))
        assert before == pytest.approx(after, rel=1e-4), "no jump where the warm-up ends"


@given(st.floats(1e-5, 1), st.integers(1, 10_000))
def test_the_peak_scales_with_the_batch_only_if_asked(lr: float, batch: int) -> None:
    assert Optimization(lr=lr).peak(batch) == lr
    assert Optimization(lr=lr, lr_per_256=True).peak(batch) == pytest.approx(lr * batch / 256)


def test_beit_reaches_the_peak_in_the_last_warm_up_step_and_mae_one_later() -> None:
    beit = Optimization(lr=1.0, warmup_epochs=1, warmup_includes_peak=True)
    mae = Optimization(lr=1.0, warmup_epochs=1)
    assert [beit.rate(step, 100, 5, 1) for step in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert [mae.rate(step, 100, 5, 1) for step in range(6)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert mae.rate(52.5, 100, 5, 1) == pytest.approx(0.5), "half way down after half of the remaining steps"


def test_the_rate_falls_along_a_line_if_asked_and_dumps_stay_as_they_were() -> None:
    line = Optimization(lr=1.0, warmup_epochs=1, min_lr=0.2, shape="linear")
    assert [line.rate(step, 25, 5, 1) for step in (5, 10, 15, 25)] == pytest.approx([1, 0.8, 0.6, 0.2])
    assert Optimization.model_validate_json(line.model_dump_json()) == line
    assert "shape" not in Optimization(lr=1.0).model_dump()


@given(values, values, st.floats(1, 2), shapes, fractions)
def test_training_may_end_before_a_schedule_does(start: float, end: float, until: float, shape: str, f: float) -> None:
    stretched, whole = (Schedule(start=start, end=end, until=u, shape=shape) for u in (until, 1))
    assert stretched(f) == pytest.approx(whole(f / until), abs=1e-9)


def test_weight_decay_is_a_number_or_a_schedule_and_a_number_stays_one() -> None:
    constant = Optimization(lr=1, weight_decay=0.1)
    assert constant.model_dump()["weight_decay"] == 0.1
    assert "until" not in constant.model_dump()
    ramp = Optimization(lr=1, weight_decay={"start": 0.04, "end": 0.4, "shape": "cosine"}, until=1.25)
    assert Optimization.model_validate_json(ramp.model_dump_json()) == ramp
    assert ramp.weight_decay(0.5) == pytest.approx(0.22)
    assert ramp.rate(80, 80, 1, 256) == pytest.approx(constant.rate(80, 100, 1, 256)), "the cosine of a longer training"
    with pytest.raises(ValidationError):
        Optimization(lr=1, weight_decay=-0.1)
