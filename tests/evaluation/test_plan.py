"""The model of a training's cost is its formula, and keeps its laws on any work and machine."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine import toys
from unimim.evaluation.counting import PHASES, Work
from unimim.evaluation.plan import Machine, forecast, reduced, step_time

sizes, rates = st.integers(0, 10**15), st.floats(1e6, 1e16)
parts = st.fixed_dictionaries(dict.fromkeys(PHASES, sizes))


@st.composite
def works(draw: st.DrawFn) -> Work:
    flops = draw(parts)
    single = {phase: draw(st.integers(0, number)) for phase, number in flops.items()}
    return Work(draw(st.integers(1, 4096)), {}, flops, single, draw(parts), draw(sizes), 0, 0)


machines = st.builds(
    Machine, rates, rates, st.floats(0.01, 1), rates, rates, st.integers(1, 4096), overlap=st.floats(0, 1)
)


@given(works(), machines, st.sampled_from(["peak", "single", "utilization", "memory", "network"]))
def test_a_slower_machine_is_never_faster(work: Work, machine: Machine, part: str) -> None:
    slower = dataclasses.replace(machine, **{part: getattr(machine, part) / 2})
    # What computes more slowly hides more of the all-reduce, but never more than it takes longer.
    assert step_time(work, slower).seconds >= step_time(work, machine).seconds * (1 - 1e-12)


@given(works(), machines)
def test_gradients_cost_nothing_alone_and_no_more_than_they_take(work: Work, machine: Machine) -> None:
    step = step_time(work, machine)
    assert 0 <= step.exposed <= step.reduce
    alone = step_time(work, dataclasses.replace(machine, gpus=1))
    assert (alone.reduce, alone.exposed) == (0, 0)
    assert alone.seconds <= step.seconds


@given(works(), machines.filter(lambda machine: machine.gpus > 1))
def test_from_two_on_more_gpus_are_never_slower_by_the_image(work: Work, machine: Machine) -> None:
    """From one to two they may be: then gradients begin to travel."""
    more = dataclasses.replace(machine, gpus=machine.gpus + 1)
    assert reduced(work, machine.gpus) <= reduced(work, more.gpus) <= 2 * work.gradients
    each, other = (step_time(work, m).seconds / m.gpus for m in (machine, more))
    assert other <= each * (1 + 1e-12)


def test_the_model_is_its_formula() -> None:
    flops, moved = {"forward": 40, "backward": 60, "update": 0}, {"forward": 5, "backward": 10, "update": 15}
    work = Work(8, {}, flops, {"forward": 20, "backward": 0, "update": 0}, moved, 300, 0, 0)
    step = step_time(work, Machine(peak=8, single=4, utilization=0.5, memory=2, network=10, gpus=4, overlap=0.5))
    assert (step.products, step.rest) == (80 / 4 + 20 / 2, 15)
    assert step.reduce == 2 * 3 / 4 * 300 / 10
    assert step.exposed == step.reduce - 0.5 * (60 / 4 + 10 / 2)
    assert step.seconds == 30 + 15 + 35


def test_a_training_is_its_steps() -> None:
    machine = Machine(1e9, 1e9, 0.5, 1e9, 1e9, gpus=2)
    found = forecast(toys.recipe("mae-micro"), 100, machine)
    assert (found.work.images, found.steps) == (4, 3 * (100 // 8))
    assert found.hours == pytest.approx(found.steps * found.step.seconds / 3600)
    data = found.data()
    assert data["gpu_hours"] == pytest.approx(2 * data["hours"])
    assert data["reduce_bytes"] == found.work.gradients
    with pytest.raises(ValueError, match="batch 8 does not divide over 3 processes; choose a multiple of 3"):
        forecast(toys.recipe(), 100, dataclasses.replace(machine, gpus=3))
