"""Contracts of the components, the laws of CAE, and one training step of the recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from unimim import Batch, Mask, Objective, Query, Recipe, RecipeError, View, load, plugins, testing

TOY = {
    "name": "cae",
    "image_size": (16, 24),
    "patch_size": 4,
    "dim": 16,
    "depth": 2,
    "num_heads": 2,
    "regressor_dim": 16,
    "regressor_depth": 2,
    "regressor_heads": 2,
}
NARROW = TOY | {"regressor_dim": 8}
SECOND = {"where": "all"}
HEAD = {"name": "cae_decoder", "num_heads": 2, "depth": 2}
SMALL = [
    "student.image_size=32",
    "student.patch_size=4",
    "student.dim=16",
    "student.depth=1",
    "student.num_heads=2",
    "student.regressor_dim=12",
    "student.regressor_depth=1",
    "student.regressor_heads=2",
    "terms.mim.head.num_heads=2",
    "terms.mim.head.depth=1",
    "terms.mim.teacher.num_codes=8",
]


def draw(seed: int, num_hidden: int = 10, batch: int = 2) -> tuple[View, Mask]:
    """Images of the toy student's size, with `num_hidden` of 24 patches hidden in each."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, 3, 16, 24, generator=generator)
    order = torch.rand(batch, 24, generator=generator).argsort(1).argsort(1)
    return View(image), Mask.from_hidden(order < num_hidden, num_hidden)


def noisy(view: View, where: Tensor) -> View:
    """The view with other pixels in the patches where (B, N) is True."""
    pixels = where.view(-1, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return View(torch.where(pixels, 1 - view.image, view.image))


def build(config: dict[str, Any]) -> Any:
    """The student with every parameter moved from its start value."""
    torch.manual_seed(0)
    student = plugins()["students"]["cae"].Config(**config).build()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student


def bound(student: Any) -> Any:
    teacher = plugins()["teachers"]["cae_latent"].Config().build(student.geometry)
    teacher.bind(student, plugins()["heads"]["cae_latent"].Config().build(student, student.geometry.masked_dim))
    teacher.freeze()
    return teacher


@pytest.mark.parametrize("student", [TOY, NARROW, TOY | SECOND, NARROW | SECOND, TOY | {"drop_path": 0.3}])
def test_the_contract_of_a_student(student: dict[str, Any]) -> None:
    testing.check_student(student)


@pytest.mark.parametrize("student", [TOY, NARROW, NARROW | SECOND])
def test_the_contract_of_the_other_parts(student: dict[str, Any]) -> None:
    testing.check_teacher("cae_latent", student)
    testing.check_head(HEAD, student)
    testing.check_head(HEAD | {"depth": 0, "num_heads": 5}, student)
    testing.check_head("cae_latent", student, out_dim=student["regressor_dim"])
    testing.check_head({"name": "decoder", "dim": 8, "depth": 1, "num_heads": 2}, student)


def test_the_decoder_reads_other_students_too() -> None:
    testing.check_head(HEAD)


@pytest.mark.parametrize("changes", [[], ["student.regressor_dim=16", "student.drop_path=0.5"], ["mask.ratio=0.3"]])
def test_trains(changes: list[str]) -> None:
    testing.check_recipe("cae-micro", [*SMALL, *changes])


@given(st.integers(0, 1000), st.integers(1, 23), st.sampled_from([TOY, NARROW, NARROW | SECOND]))
@settings(max_examples=15, deadline=None)
def test_hidden_pixels_change_nothing_and_visible_ones_the_prediction(
    seed: int, num_hidden: int, config: dict[str, Any]
) -> None:
    student, (view, mask) = build(config).eval(), draw(seed, num_hidden)
    blind, other = noisy(view, mask.hidden), noisy(view, ~mask.hidden)
    seen, again = (student.encode(each, mask.visible_index) for each in (view, blind))
    assert seen.equal(again)
    predicted, same, moved = (student(each, mask) for each in (view, blind, other))
    assert predicted.tokens.equal(same.tokens)
    assert predicted.prefix.equal(same.prefix)
    assert not predicted.tokens.equal(moved.tokens)


@given(st.integers(0, 1000), st.integers(1, 23))
@settings(max_examples=15, deadline=None)
def test_the_alignment_target_depends_on_hidden_pixels_alone(seed: int, num_hidden: int) -> None:
    student, (view, mask) = build(NARROW).eval(), draw(seed, num_hidden)
    teacher = bound(student)
    target = teacher(view, mask).tokens
    assert teacher(noisy(view, ~mask.hidden), mask).tokens.equal(target)
    changed = (teacher(noisy(view, mask.hidden), mask).tokens != target).any(-1)
    assert changed.equal(mask.hidden)
    assert not target[~mask.hidden].any(), "visible positions stay empty"


def test_each_prediction_lands_on_its_own_slot() -> None:
    """Hidden patches are predicted from one token: only their position tells them apart, whatever else is hidden."""
    student, (view, mask) = build(TOY).eval(), draw(0)
    tokens = student(view, mask).tokens
    order = torch.arange(mask.hidden_index.shape[1]).flip(0)
    turned = Mask(mask.hidden, mask.hidden_index[:, order], mask.visible_index)
    assert_close(student(view, turned).tokens, tokens[:, order], rtol=0, atol=1e-5)
    assert (tokens[:, 1:] - tokens[:, :-1]).abs().amax(-1).min() > 1e-3
    head = plugins()["heads"]["cae_latent"].Config().build(student, 16)
    encoded = student(view, mask)
    asked = mask.hidden_index[:, [3, 1]]
    assert head(encoded, Query(asked)).equal(tokens[:, [3, 1]])


def test_the_class_token_reaches_no_prediction_but_through_the_encoder() -> None:
    """The regressor sees visible latents, not the class token's: moving what it is given there changes nothing."""
    student, (view, mask) = build(TOY).eval(), draw(0)
    seen = student.project(student.encode(view, mask.visible_index))
    assert student(view, mask).tokens.equal(student._regress(seen[:, 1:], mask))
    assert student(view, mask).prefix.equal(seen[:, :1])


def test_queries_see_one_another_and_values_have_no_position() -> None:
    """One block by its formula, in float64."""
    block = build(NARROW).regressor[0].double()
    x, visible, positions, known = (
        torch.randn(2, n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (3, 5, 4, 6)
    )
    positions, known, context = positions[:, :3], known[:, :5], torch.cat([visible, x], 1)
    norm, attn = torch.nn.functional.layer_norm, block.attn

    def normed(y: Tensor, part: Any) -> Tensor:
        return norm(y, (8,), part.weight, part.bias, 1e-6)

    def heads(y: Tensor) -> Tensor:
        return y.view(2, -1, 2, 4).transpose(1, 2)

    q = heads(normed(x + positions, block.norm_q) @ attn.q.weight.mT + attn.q.bias)
    k = heads(normed(context + torch.cat([known, positions], 1), block.norm_k) @ attn.k.weight.mT)
    v = heads(normed(context, block.norm_v) @ attn.v.weight.mT + attn.v.bias)
    mixed = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, 3, 8)
    y = normed(x + block.ls1.gamma * attn.proj(mixed), block.norm2)
    assert_close(block(x, visible, positions, known), y + block.ls2.gamma * block.mlp(y), rtol=0, atol=1e-12)


def objective(*changes: str) -> tuple[Objective, Batch]:
    recipe = load("cae-micro", [*SMALL, "precision=float32", "mask.count=32", "mask.ratio=null", *changes])
    made = Objective(recipe)
    generator = torch.Generator().manual_seed(0)
    view = View(torch.rand(2, 3, 32, 32, generator=generator))
    hidden = torch.rand(2, 64, generator=generator).argsort(1).argsort(1) < 32
    batch = Batch({"main": view}, {"main": (Mask.from_hidden(hidden, 32),)}, torch.arange(2))
    made.fit([batch])
    return made, batch


def test_the_teacher_is_the_student_of_this_step() -> None:
    """After an optimizer step it answers with the new weights, without a hook, a copy, or a parameter of its own."""
    made, batch = objective()
    view, (mask,) = batch.views["main"], batch.masks["main"]
    teacher: Any = made.teachers["align"]
    assert not [*teacher.parameters()]
    assert not [name for name in made.state_dict() if name.startswith("teachers.align")]
    before = teacher(view, mask).tokens
    optimizer = torch.optim.SGD(made.student.parameters(), 0.1)
    made(batch)["loss"].backward()
    optimizer.step()
    after = teacher(view, mask).tokens
    assert not after.equal(before)
    student: Any = made.student
    own = student.project(student.encode(view, mask.hidden_index))[:, 1:]
    assert after[mask.hidden].view_as(own).equal(own)


def test_no_gradient_flows_through_the_target() -> None:
    """Of the alignment term the gradient is that of a constant target."""
    made, batch = objective()
    (step,) = made.predictions(batch)["align"]
    assert not step.target.requires_grad
    made(batch)["align"].backward()
    flowing = {name: p.grad.clone() for name, p in made.student.named_parameters() if p.grad is not None}
    made.zero_grad()
    encoded = made.student(batch.views["main"], batch.masks["main"][0])
    (encoded.tokens - step.target).square().mean().backward()
    constant = {name: p.grad for name, p in made.student.named_parameters() if p.grad is not None}
    assert {*flowing} == {*constant}
    for name, gradient in flowing.items():
        assert_close(gradient, constant[name], rtol=0, atol=1e-6)


def test_predicting_zero_costs_the_logarithm_of_the_vocabulary_and_the_power_of_the_target() -> None:
    made, batch = objective()
    with torch.no_grad():
        for part in (made.terms["mim"].head.proj, made.student.regressor_norm):
            for parameter in part.parameters():
                parameter.zero_()
    losses = made(batch)
    (step,) = made.predictions(batch)["align"]
    assert losses["mim"].item() == pytest.approx(torch.tensor(8.0).log().item(), rel=1e-6)
    assert losses["align"].item() == pytest.approx(step.target.square().mean().item(), rel=1e-6)
    assert losses["loss"].item() == pytest.approx((losses["mim"] + 2 * losses["align"]).item(), rel=1e-6)


def test_start_values_are_xavier_in_every_linear_layer() -> None:
    """fc1 and the last fc2 have the deviation sqrt(2 / (in + out)): nothing is rescaled by depth. Tokens are cut at 0.02."""
    torch.manual_seed(0)
    student: Any = plugins()["students"]["cae"].Config(dim=192, regressor_dim=96, depth=4, regressor_depth=1).build()
    for part, dim in ((student.blocks[-1].mlp, 192), (student.regressor[-1].mlp, 96)):
        for linear in (part.fc1, part.fc2):
            assert linear.weight.std().item() == pytest.approx((2 / (5 * dim)) ** 0.5, rel=0.03)
    for cut in (student.patch_embed.proj.weight, student.prefix, student.mask_token):
        assert cut.abs().max() <= 0.02
        assert cut.std().item() == pytest.approx(0.0108, rel=0.15)


def test_the_base_size_has_as_many_parameters_as_the_official_one() -> None:
    recipe = load("cae")
    with torch.device("meta"):
        student = recipe.student.build()
        head = recipe.terms["mim"].head.build(student, 8192)
    assert sum(p.numel() for part in (student, head) for p in part.parameters()) == 148_681_472


def test_the_recipe_is_the_row_with_the_alignment_beside_it() -> None:
    axes = {"teacher": "dVAE & Self", "student": "ViT", "head": "Decoder & /", "norm": "/", "loss": "CrossEntropy & l2"}
    assert load("cae").axes() == axes
    data = load("cae").data()
    del data["terms"]["align"]
    assert [*Recipe.model_validate(data).axes().values()] == ["dVAE", "ViT", "Decoder", "/", "CrossEntropy"]
    large: Any = load("cae-large").student
    assert (large.dim, large.depth, large.num_heads, large.layer_scale) == (1024, 24, 16, 1e-5)
    assert (large.regressor_dim, large.regressor_heads, large.regressor_layer_scale) == (768, 12, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["mask.exact=false"], "needs the same count in every image"),
        (["mask=none"], "masks hide nothing"),
        (["student.image_size=30"], r"nearest image_size \[32, 32\]"),
        (["student.regressor_heads=5"], "regressor_dim 768 does not divide into regressor_heads 5"),
        (["student.regressor_dim=770"], "multiple of 4"),
        (["student.mean=[0.5]"], "mean and std need channels: 3 numbers each"),
        (["terms.align.where=all"], "at visible positions, but student 'cae' has none there"),
        (["student=vit", "student.masking=drop"], "at hidden positions, but student 'vit' has none there"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_recipe(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load("cae", changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["student={name: vit, image_size: 32, patch_size: 4, dim: 16, num_heads: 2}"], "teacher cae_latent reads"),
        (["terms.align.teacher=pixel"], "hands on tokens of width 12, but the target has 48"),
        (["terms.mim.head.num_heads=5"], "width 12 does not divide into num_heads 5"),
    ],
)
def test_what_does_not_fit_is_refused_when_built(changes: list[str], message: str) -> None:
    recipe = load(
        "cae-micro", [*(s for s in SMALL if not changes[0].startswith("student=") or "student" not in s), *changes]
    )
    with pytest.raises(ValueError, match=message):
        Objective(recipe)
