"""What is counted without computing is what a step executes, bytes are those of a count by hand, and the model keeps its laws."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.engine import toys
from unimim import Recipe, load
from unimim.evaluation.cost import Case, Workload
from unimim.evaluation.plan import (
    PHASES,
    Imagined,
    Machine,
    Meter,
    Work,
    count,
    forecast,
    reduced,
    step_time,
    unloaded,
)

CPU = torch.device("cpu")
MIXED = "precision=bfloat16"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mae-micro", ()),
        ("mae-micro", (MIXED,)),
        ("beit-micro", ()),  # a codebook that was never fitted, and masks of varying size
        ("data2vec-micro", (MIXED,)),
    ],
)
def test_what_is_counted_is_what_a_step_executes(name: str, changes: tuple[str, ...]) -> None:
    recipe = toys.recipe(name, *changes)
    work = counted(name, *changes)
    assert work.axes == Workload(Case(recipe), CPU).flops()
    assert sum(work.flops.values()) == sum(work.axes.values())
    assert work.flops["update"] == 0 < work.flops["forward"] < work.flops["backward"] + work.axes["T"]


@functools.cache
def counted(name: str, *changes: str) -> Work:
    return count(toys.recipe(name, *changes))


def clip(folder: Path, *changes: str) -> Recipe:
    return toys.load(
        "maskdistill-micro", [*toys.SMALL, f"teacher.model=local-dir:{folder}", "mask.ratio=0.5", *changes]
    )


def test_a_teacher_in_float32_is_told_apart(tiny_clip: Path) -> None:
    executed = Workload(Case(clip(tiny_clip)), CPU).flops()
    mixed, low = (count(clip(tiny_clip, MIXED, f"teacher.precision={dtype}")) for dtype in ("float32", "bfloat16"))
    assert mixed.axes == low.axes == executed
    assert mixed.single == {"forward": executed["T"], "backward": 0, "update": 0}
    assert (
        low.single == counted("mae-micro").single == dict.fromkeys(PHASES, 0)
    )  # in float32 there is no other to tell it from


def test_operations_grow_with_the_batch_and_bytes_by_as_much_each_time() -> None:
    four, eight, twelve = (counted("mae-micro", *changes) for changes in (["batch=4"], [], ["batch=12"]))
    assert [2 * flops for flops in four.axes.values()] == [*eight.axes.values()]
    moved = [sum(work.moved.values()) for work in (four, eight, twelve)]
    assert moved[2] - moved[1] == moved[1] - moved[0] > 0
    assert four.passing < eight.passing
    assert (four.held, four.gradients) == (eight.held, eight.gradients)


def test_bytes_held_are_weights_and_two_moments() -> None:
    workload = Imagined(toys.recipe("data2vec-micro"))
    trained = sum(p.numel() for p in workload.objective.parameters() if p.requires_grad)
    tensors = [*workload.objective.parameters(), *workload.objective.buffers()]
    held = sum(t.numel() * t.element_size() for t in tensors) + 2 * 4 * trained
    assert held <= workload.held() <= held + 4 * len(tensors)  # and a counter of steps for each
    work = counted("data2vec-micro", MIXED)
    assert work.gradients == 4 * trained < work.passing
    assert work.moved["update"] > 7 * work.gradients + 3 * work.gradients / 2  # AdamW: 4 read, 3 written; the average


def test_bytes_are_those_of_a_count_by_hand() -> None:
    with FakeTensorMode(), Meter(mixed=True) as meter:
        a, b = torch.ones(10, 10), torch.ones(10, 10, dtype=torch.bfloat16)  # 400 and 200 bytes written
        a.add_(a[:1].expand(10, 10))  # 400 read, 40 that repeat, 400 written
        a.view(100).t()
        b @ b
        torch.ones(10, 1) @ a[:1]  # 40 written
    assert meter.moved == {"forward": 400 + 200 + 840 + 40, "backward": 0, "update": 0}
    assert meter.flops["forward"] == 2000 + 200
    assert meter.single["forward"] == 200


def test_the_peak_is_of_what_lives_together() -> None:
    with FakeTensorMode(), Meter(mixed=False) as meter:
        a = torch.ones(100)
        for _ in range(5):
            a = a + 1
        b = a[:50] * 2
        del a
        b + b
    assert (meter.peak, meter.alive) == (800, 200)


def test_phases_follow_the_backward_pass() -> None:
    with FakeTensorMode(), Meter(mixed=False) as meter:
        weight = torch.ones(4, 8, requires_grad=True)
        loss = (torch.ones(2, 4) @ weight).sum()
        loss.backward()
        torch.ones(3) + 1
    assert meter.flops == {"forward": 128, "backward": 128, "update": 0}
    assert meter.moved["update"] == 12 + 24


def test_nothing_is_loaded() -> None:
    recipe = unloaded(load("maskdistill"))
    assert load("maskdistill").terms["mim"].teacher.reloads
    assert not recipe.terms["mim"].teacher.reloads
    assert unloaded(load("mae")) == load("mae")


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
