"""No step waits for the device, and none has a shape that depends on data: seen on a GPU that is not there.

The host reads two things beside the steps: whether the guard is stuck, from a copy a step late, and meters, when they are
logged. LARS, which is not fused, is asked whether to step; linear probes alone use it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.every import names, tiny
from unimim import Objective, Sampling
from unimim.engine.guard import Guard
from unimim.engine.loop import clip
from unimim.engine.meters import Meters
from unimim.engine.optim import make_optimizer, set_decay, set_rate
from unimim.recipe import Replay
from unimim.testing import absent_gpu, check_static_step
from unimim.testing.static import two_processes

from . import toys

SINS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "truth": lambda x: bool((x > 0).any()),
    "list": lambda x: x.tolist(),
    "equality": lambda x: torch.equal(x, x + 1),
    "slice": lambda x: x[: x.argmax()],
    "mask": lambda x: x[x > 0],
    "filled mask": lambda x: x.clone().__setitem__(x > 0, 0),
    "nonzero": lambda x: x.nonzero(),
    "select": lambda x: x.masked_select(x > 0),
    "repeats": lambda x: x.repeat_interleave(x.long()),
    "to the host": lambda x: x.cpu(),
    "copied out": lambda x: torch.zeros(3).copy_(x),
    "number to the device": lambda x: x + torch.tensor(1.0, device=x.device),
    "two devices": lambda x: x + torch.arange(3),
}


@pytest.mark.parametrize("sin", SINS)
def test_what_waits_is_found_and_named(sin: str) -> None:
    with pytest.raises(AssertionError, match=r"test_static_step\.py:\d+: "), absent_gpu() as to_gpu:
        SINS[sin](to_gpu(torch.ones(3)))


def test_what_does_not_wait_is_let_through() -> None:
    with absent_gpu() as to_gpu:
        x = to_gpu(torch.ones(3))
        y = torch.where(x > 0, x, 0).gather(0, x.argsort()) / torch.tensor(2.0) + x.new_full((), 3)
        assert (y.device.type, y.shape) == ("cuda", (3,))


@pytest.mark.parametrize("name", [name for name in names() if not name.endswith(("-large", "-huge"))])
def test_no_recipe_waits_for_the_device(name: str, tiny_clip: Path) -> None:
    check_static_step(tiny(name, tiny_clip))


def test_rounding_targets_does_not_wait_for_the_device(tiny_clip: Path) -> None:
    replay = Replay(crops=1, precision="int8")
    check_static_step(tiny("maskdistill", tiny_clip).model_copy(update={"replay": replay}), compiled=True)


@pytest.mark.parametrize("name", ["mae", "maskdistill", "simmim"])
def test_each_kind_of_student_compiles_to_one_graph(name: str, tiny_clip: Path) -> None:
    """A ViT that drops patches, one that replaces them, and a Swin; objective and all."""
    check_static_step(tiny(name, tiny_clip), compiled=True)


def test_the_engine_does_not_wait_for_the_device() -> None:
    recipe = toys.recipe("mae-micro", "optimization.clip_norm=1")
    objective = Objective(recipe).train()
    sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
    batch = sampling.collate([sampling(toys.Noise().read(index), 0, index) for index in range(2)])
    with two_processes(), absent_gpu() as to_gpu:
        there, batch = to_gpu(objective), to_gpu(batch)
        optimizer = make_optimizer(there, recipe.optimization, there.depth_of)
        guard, meters = Guard(batch.index.device, 1), Meters(None, batch.index.device)
        for _ in range(2):
            set_rate(optimizer, 1e-3)
            set_decay(optimizer, 0.05)
            losses = {name: value.detach() for name, value in there(batch, there.count(batch)).items()}
            for parameter in there.parameters():
                parameter.grad = torch.zeros_like(parameter)
            grad_norm = clip(there, recipe.optimization.clip_norm)
            meters.add(losses, grad_norm, guard.judge(losses["loss"], grad_norm, optimizer))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def test_masks_of_varying_counts_change_shapes_but_wait_for_nothing() -> None:
    """Their counts are read by the loader, which pads them: only from batch to batch do shapes differ."""
    recipe = toys.recipe("beit-micro", "mask.exact=false", "mask.min_block=1")
    assert Sampling(recipe, recipe.student.geometry).counts == {"main": None}
    check_static_step(recipe)
