"""Contracts of the components, the laws of SplitMask, and its recipe in one process and in two."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from unimim import Batch, Encoded, Mask, Objective, Recipe, RecipeError, View, load, plugins, testing

TOY = {
    "name": "splitmask",
    "image_size": (16, 24),
    "patch_size": 4,
    "dim": 16,
    "depth": 2,
    "num_heads": 2,
    "decoder_dim": 8,
    "decoder_heads": 2,
}
SMALL = [
    *("student.image_size=32", "student.patch_size=4", "student.dim=16", "student.depth=2", "student.num_heads=2"),
    *("student.decoder_dim=8", "student.decoder_heads=2", "terms.tokens.teacher.num_codes=8"),
]


@pytest.mark.parametrize(
    "student",
    [
        TOY,
        TOY | {"decoder_dim": 16, "decoder_depth": 1},
        TOY | {"drop_path": 0.3, "channels": 1, "mean": (0,), "std": (1,)},
    ],
)
def test_the_contract_of_a_student(student: dict[str, Any]) -> None:
    testing.check_student(student)


@pytest.mark.parametrize("student", [TOY, testing.TOY])
def test_the_contract_of_the_other_parts(student: dict[str, Any]) -> None:
    testing.check_teacher("other_fold", student)
    testing.check_head("mean", student, out_dim=student.get("decoder_dim", student["dim"]))
    testing.check_head("fc", student)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["student.image_size=64", "student.patch_size=8", "student.drop_path=0.2"],
        ["masks.main.folds=3", "masks.main.ratio=0.7"],
        ["terms.tokens.teacher={name: dvae, vocab_size: 16, num_hidden: 4, blocks_per_group: 1}"],
    ],
    ids=["32 pixels", "64 pixels", "three folds", "dVAE"],
)
def test_trains(changes: list[str]) -> None:
    testing.check_recipe("splitmask-micro", [*SMALL, *changes])


def test_two_processes_compute_what_one_computes() -> None:
    """Loss and every gradient at the same global batch: negatives and their gradients cross the processes."""
    testing.check_processes("splitmask-micro", SMALL)


def objective(*changes: str) -> Objective:
    torch.manual_seed(0)
    made = Objective(load("splitmask-micro", [*SMALL, *changes]))
    with torch.no_grad():
        for parameter in made.student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def draw(seed: int = 0, size: int = 4) -> Batch:
    """Random images of 8 x 8 patches in two halves."""
    generator = torch.Generator().manual_seed(seed)
    view = View(torch.rand(size, 3, 32, 32, generator=generator))
    hidden = torch.rand(size, 64, generator=generator).argsort(1).argsort(1) < 32
    return Batch(
        {"main": view}, {"main": (Mask.from_hidden(hidden, 32), Mask.from_hidden(~hidden, 32))}, torch.arange(size)
    )


def fitted(*changes: str, batch: Batch | None = None) -> tuple[Objective, Batch]:
    made, batch = objective(*changes), batch or draw()
    made.fit([batch])
    return made, batch


def noisy(view: View, where: Tensor) -> View:
    """The view with other pixels in the patches where (B, N) is True."""
    pixels = where.view(-1, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return View(torch.where(pixels, 1 - view.image, view.image))


def info_nce(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """The symmetric form, written as two classifications over the batch."""
    logits = F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT / temperature
    own = torch.arange(len(x))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.mT, own)) / 2


def test_the_student_runs_once_a_fold_and_no_patch_is_encoded_twice() -> None:
    made, batch = fitted()
    student: Any = made.student
    calls: list[Mask] = []
    entered: list[int] = []
    student.register_forward_hook(lambda module, args, out: calls.append(args[1]))
    student.encoder.blocks[0].register_forward_hook(lambda module, args, out: entered.append(args[0].shape[1] - 1))
    made(batch)["loss"].backward()
    assert [id(mask) for mask in calls] == [id(mask) for mask in batch.masks["main"]]
    assert entered == [32, 32], "each half enters the encoder once, without mask tokens"


def test_every_patch_gets_one_cross_entropy_a_step() -> None:
    made, batch = fitted()
    steps = made.predictions(batch)["tokens"]
    asked = torch.cat([step.query.index for step in steps if step.query.index is not None], 1)
    assert asked.sort(1).values.equal(torch.arange(64).expand(4, -1))
    match, tokens = made.count(batch).tolist()
    assert (match, tokens) == (2 * 4, 4 * 64)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_what_a_fold_hides_reaches_none_of_its_tokens(seed: int) -> None:
    student, batch = objective().student.eval(), draw(seed, 2)
    view = batch.views["main"]
    for mask in batch.masks["main"]:
        said = student(view, mask)
        blind, other = student(noisy(view, mask.hidden), mask), student(noisy(view, ~mask.hidden), mask)
        assert said.tokens.equal(blind.tokens)
        assert said.prefix.equal(blind.prefix)
        assert (said.tokens != other.tokens).any(-1).all(), "every token knows of what is seen"


def test_each_token_lands_on_its_own_patch() -> None:
    """Without attention the decoder says of a patch what that patch and its place say, and of hidden ones their place."""
    student: Any = objective().student.eval()
    batch = draw()
    view, (mask, _) = batch.views["main"], batch.masks["main"]
    student.blocks = torch.nn.ModuleList()
    said = student(view, mask)
    seen = student.encoder(view, mask)
    grid = torch.arange(64).expand(4, -1)
    expected = student.mask_token.expand(4, 64, -1).clone()
    for image in range(4):
        expected[image, mask.visible_index[image]] = student.embed(seen.tokens[image])
    assert_close(said.at(grid), student.norm(expected + student.positions), rtol=0, atol=1e-6)
    assert_close(said.prefix, student.norm(student.embed(seen.prefix)), rtol=0, atol=1e-6)


def test_the_target_is_the_mean_of_the_other_folds_in_raster_order() -> None:
    made, batch = fitted("masks.main.folds=3", "masks.main.ratio=0.7")
    view, (mask, other) = batch.views["main"], batch.masks["main"]
    said = [made.student(view, each) for each in (mask, other)]
    teacher: Any = made.teachers["match"]
    target = teacher.from_folds(said)
    raster = [each.tokens.gather(1, each.index.argsort(1).unsqueeze(-1).expand_as(each.tokens)) for each in said]
    assert_close(target.tokens, (raster[0] + raster[1]) / 2)
    assert_close(target.image[:, 0], (said[0].tokens.mean(1) + said[1].tokens.mean(1)) / 2)


def test_the_match_is_the_symmetric_contrast_of_both_means_and_its_gradient_flows_through_both() -> None:
    made, batch = fitted("terms.match.loss.temperature=0.5")
    losses = made(batch)
    losses["match"].backward()
    flowing = {name: p.grad.clone() for name, p in made.student.named_parameters() if p.grad is not None}
    made.zero_grad()
    x, y = (made.student(batch.views["main"], mask).tokens.mean(1) for mask in batch.masks["main"])
    expected = info_nce(x, y, 0.5)
    assert losses["match"].item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    largest = max(gradient.abs().max().item() for gradient in flowing.values())
    for name, parameter in made.student.named_parameters():
        assert_close(flowing[name], parameter.grad, rtol=0, atol=1e-5 * largest)
    assert losses["loss"].item() == pytest.approx((losses["match"] + losses["tokens"]).item(), rel=1e-6)


def test_swapping_the_folds_changes_nothing() -> None:
    made, batch = fitted()
    (one, two) = batch.masks["main"]
    losses, swapped = made(batch), made(replace(batch, masks={"main": (two, one)}))
    for name, value in losses.items():
        assert swapped[name].item() == pytest.approx(value.item(), rel=1e-6)


def test_equal_images_are_each_others_negatives() -> None:
    """n copies of one image cost log n, whatever the student says; one image alone has no negatives and costs nothing."""
    one = draw(size=1)
    for copies in (1, 2, 5):
        view = View(one.views["main"].image.expand(copies, -1, -1, -1))
        masks = tuple(Mask.from_hidden(mask.hidden.expand(copies, -1), 32) for mask in one.masks["main"])
        made, batch = fitted(batch=Batch({"main": view}, {"main": masks}, torch.arange(copies)))
        assert made(batch)["match"].item() == pytest.approx(math.log(copies), abs=1e-5)


def test_predicting_nothing_costs_the_logarithm_of_the_vocabulary() -> None:
    made, batch = fitted()
    head: Any = made.terms["tokens"].head
    with torch.no_grad():
        head.proj.weight.zero_()
    assert made(batch)["tokens"].item() == pytest.approx(math.log(8), rel=1e-6)


def test_the_vocabulary_is_that_of_the_highest_cosine_in_pixel_space() -> None:
    made, batch = fitted()
    teacher: Any = made.teachers["tokens"]
    pixels = plugins()["teachers"]["pixel"].Config().build(made.student.geometry)(batch.views["main"]).tokens
    closest = (F.normalize(pixels, dim=-1) @ F.normalize(teacher.codes, dim=-1).mT).argmax(-1)
    assert teacher(batch.views["main"]).tokens.equal(closest)


def test_the_encoder_is_the_cores_and_says_the_same_of_whole_images() -> None:
    student: Any = objective().student.eval()
    view = draw().views["main"]
    said: Encoded = student(view)
    assert said.tokens.equal(student.encoder(view).tokens)
    assert said.tokens.shape == (4, 64, 16)
    layers = {name: student.layer_of(name) for name, _ in student.named_parameters()}
    assert layers["encoder.patch_embed.proj.weight"] == layers["encoder.prefix"] == 0
    assert layers["encoder.blocks.1.norm1.weight"] == 2
    assert layers["blocks.0.norm1.weight"] == layers["mask_token"] == layers["encoder.norm.bias"] == 3


def test_the_recipe_is_the_row_with_the_match_beside_it() -> None:
    axes = {"teacher": "Self & dVAE", "student": "ViT", "head": "/ & FC", "norm": "/", "loss": "InfoNCE & CrossEntropy"}
    assert load("splitmask").axes() == axes
    data = load("splitmask").data()
    del data["terms"]["match"]
    assert [*Recipe.model_validate(data).axes().values()] == ["dVAE", "ViT", "FC", "/", "CrossEntropy"]
    vocabulary = "terms.tokens.teacher={name: kmeans, teacher: pixel, normalize: true}"
    teacher: Any = load("splitmask", [vocabulary]).terms["tokens"].teacher
    assert (teacher.num_codes, teacher.normalize) == (8192, True)
    assert load("splitmask").masks["main"].num_hidden((14, 14)) == 98


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["mask=random"], "teacher 'other_fold' reads the student's other mask folds"),
        (["mask.ratio=0.3"], "leaves 137 of 196 patches to each of 2 folds"),
        (["mask=none"], "masks hide nothing"),
        (["terms.match.loss.negatives=image"], "negatives: world"),
        (["terms.tokens.teacher=pixel"], "compares ids"),
        (["student.image_size=30"], r"nearest image_size \[32, 32\]"),
        (["student.decoder_heads=5"], "decoder_dim 512 does not divide into decoder_heads 5"),
        (["student.decoder_dim=510"], "multiple of 4"),
        (["student.num_heads=5"], "dim 768 does not divide into num_heads 5"),
        (["student.mean=[0.5]"], "mean and std need channels: 3 numbers each"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_recipe(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load("splitmask", changes)


VIT = "{name: vit, image_size: 32, patch_size: 4, dim: 16, num_heads: 2, depth: 1, masking: drop}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [f"student={VIT}", "terms.tokens.head={name: decoder, dim: 8, depth: 1, num_heads: 2}"],
            "answers for visible",
        ),
        (["terms.match.teacher=pixel"], "hands on tokens of width 8, but the target has 48"),
    ],
)
def test_what_does_not_fit_is_refused_when_built(changes: list[str], message: str) -> None:
    small = [change for change in SMALL if not (changes[0].startswith("student=") and change.startswith("student."))]
    with pytest.raises(ValueError, match=message):
        Objective(load("splitmask-micro", [*small, *changes]))
