"""The recipes: that they train, what one step asks of the teacher, and the size of the loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from unimim import Batch, Objective, Progress, Sampling, TargetSpec, load, testing

SMALL = ["student.dim=16", "student.depth=2", "student.num_heads=2", "head.dim=8", "head.depth=1", "head.num_heads=2"]


def small(clip: Path, *overrides: str) -> list[str]:
    return [*SMALL, f"teacher.model=local-dir:{clip}", "weight=8", *overrides]


def prepared(clip: Path, *overrides: str) -> tuple[Objective, Batch]:
    torch.manual_seed(0)
    objective = Objective(load("milan-micro", small(clip, *overrides)))
    sampling = Sampling(objective.recipe, objective.student.geometry, objective.renditions)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 80, 96), dtype=torch.uint8, generator=draw)
    return objective, sampling.collate([sampling(image, 0, index) for index, image in enumerate(images)])


@pytest.mark.parametrize("overrides", [[], ["student.image_size=32", "student.patch_size=4"]])
def test_trains(tiny_clip: Path, overrides: list[str]) -> None:
    testing.check_recipe("milan-micro", small(tiny_clip, *overrides))


def test_one_pass_of_the_teacher_serves_the_mask_and_the_target(tiny_clip: Path) -> None:
    objective, batch = prepared(tiny_clip)
    tower: Any = objective.teachers["mim"].tower
    calls: list[torch.nn.Module] = []
    parts = [tower.conv1, *tower.transformer.resblocks, tower.ln_post]
    for part in parts:
        part.register_forward_hook(lambda module, args, out: calls.append(module))
    for step in range(3):
        calls.clear()
        objective.on_step_start(Progress(step, 10, 5))
        objective.train()(batch)["loss"].backward()
        assert calls == parts, "one pass through the tower a step"


def test_the_mask_is_drawn_anew_at_every_step_and_shows_what_the_teacher_attends_to(tiny_clip: Path) -> None:
    objective, batch = prepared(tiny_clip)
    teacher: Any = objective.teachers["mim"]
    with torch.no_grad():  # attention that is nearly all on one patch a head
        teacher.tower.transformer.resblocks[-1].attn.in_proj_weight.mul_(20)
    saliency = teacher(batch.views["main"]).saliency
    peaks = saliency > 0.2
    assert peaks.any(1).all()
    masks: list[Any] = [batch.masks["main"][0]]
    objective.student.register_forward_hook(lambda module, args, out: masks.append(args[1]))
    for step in range(10):
        objective.on_step_start(Progress(step, 10, 5))
        objective(batch)
    assert masks[0].hidden[peaks].any(), "the placeholder knows nothing"
    assert not any(mask.hidden[peaks].any() for mask in masks[1:])
    assert all(not one.hidden.equal(other.hidden) for one, other in pairwise(masks))


def test_the_count_of_the_placeholder_is_that_of_the_draw(tiny_clip: Path) -> None:
    objective, batch = prepared(tiny_clip)
    assert objective.count(batch).tolist() == [4 * (64 + 1)]


def test_the_loss_is_two_minus_two_cosines_over_all_tokens_and_the_class(tiny_clip: Path) -> None:
    objective, batch = prepared(tiny_clip)
    (step,) = objective.predictions(batch)["mim"]
    cosine = F.cosine_similarity(step.preds[0], step.target, dim=-1)
    assert cosine.shape == (4, 65)
    assert objective(batch)["loss"].item() == pytest.approx((2 - 2 * cosine).mean().item(), rel=1e-5)


def test_hidden_pixels_reach_no_prediction(tiny_clip: Path) -> None:
    objective, batch = prepared(tiny_clip, "mask={name: random, ratio: 0.75}")  # a mask that stays when pixels change
    view, (mask,) = batch.views["main"], batch.masks["main"]
    hidden = mask.hidden.view(-1, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = replace(view, image=torch.where(hidden, 255 - view.image, view.image))
    before = objective.predictions(batch)["mim"][0]
    after = objective.predictions(replace(batch, views={"main": changed}))["mim"][0]
    assert (before.preds[0] - after.preds[0]).abs().max().item() == 0.0


@pytest.mark.parametrize(("name", "width"), [("milan", 768), ("milan-large", 1024)])
def test_the_published_sizes(name: str, width: int) -> None:
    recipe = load(name)
    assert recipe.student.geometry.dim == width
    assert recipe.optimization.peak(recipe.batch) == pytest.approx(2.4e-3)
    assert recipe.masks["main"].num_hidden((14, 14)) == 147
    assert recipe.axes() == load("milan-micro").axes()


def test_base_has_the_official_number_of_parameters() -> None:
    """zejiangh/MILAN @ 7dcfe0f: 111,524,352 trainable parameters of mae_vit_base_patch16."""
    recipe = load("milan")
    term = recipe.terms["mim"]
    with torch.device("meta"):
        student: Any = recipe.student.build()
        head = term.head.build(student, term.loss.build(TargetSpec(512)).out_dim)
    assert sum(parameter.numel() for module in (student, head) for parameter in module.parameters()) == 111_524_352
