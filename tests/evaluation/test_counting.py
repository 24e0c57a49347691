"""What is counted without computing is what a step executes, and bytes are those of a count by hand."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.engine import toys
from unimim import Recipe, load
from unimim.evaluation.cost import Case
from unimim.evaluation.counting import PHASES, Imagined, Meter, Work, count, unloaded
from unimim.evaluation.workload import Workload

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
    inner = {"name": "timm", "model": "vit_base_patch16_224.dino"}
    codes = unloaded(load("beit-micro", [f"teacher={{name: kmeans, teacher: {inner}}}"])).terms["mim"].teacher
    assert not codes.teacher.reloads  # type: ignore[attr-defined]
