"""Contracts of the components, the laws of ExtreMA, and one training step of the recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from unimim import Batch, Encoded, Objective, Progress, Query, RecipeError, Sampling, Tap, View, load, plugins, testing

TOY = {
    "name": "extrema",
    "image_size": (16, 24),
    "patch_size": 4,
    "dim": 16,
    "depth": 2,
    "num_heads": 2,
    "class_depth": 2,
    "layer_scale": 0.5,
}
SMALL = [
    "student.image_size=32",
    "student.patch_size=4",
    "student.dim=16",
    "student.depth=2",
    "student.num_heads=2",
    "head.hidden=24",
    "teacher.head_dim=12",
    "precision=float32",
]


def objective(*changes: str) -> Any:
    """The micro recipe made small, every parameter moved from its start value, and the copies apart from the student."""
    torch.manual_seed(0)
    made = Objective(load("extrema-micro", [*SMALL, *changes]))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def draw(made: Objective, images: int = 4) -> Batch:
    sampling = Sampling(made.recipe, made.student.geometry, made.renditions)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (images, 3, 40, 48), dtype=torch.uint8, generator=generator)
    return sampling.collate([sampling(image, 0, index) for index, image in enumerate(pixels)])


def noisy(view: View, where: Tensor, patch: int = 4) -> View:
    """The view with other pixels in the patches where (B, N) is True."""
    side = view.image.shape[-1] // patch
    pixels = where.view(len(where), 1, -1, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return replace(view, image=torch.where(pixels, 255 - view.image, view.image))


@pytest.mark.parametrize(
    "changes", [{}, {"class_depth": 1}, {"drop_path": 0.3}, {"channels": 1, "mean": [0], "std": [1]}]
)
def test_the_contract_of_a_student(changes: dict[str, Any]) -> None:
    testing.check_student(TOY | changes)


def test_the_contract_of_a_head() -> None:
    dropping = testing.TOY | {"masking": "replace"}
    testing.check_head({"name": "extrema", "hidden": 8}, dropping)
    testing.check_head({"name": "extrema", "hidden": 8}, dropping, out_dim=3)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["mask.folds=8", "mask.ratio=0.9"],
        ["view=main", "views.main.jitter=0", "views.main.grey=0"],
        ["student.drop_path=0.5", "student.class_depth=1"],
        ["student.image_size=64", "student.patch_size=8"],
        ["head=fc", "teacher.head_dim=null", "teacher.head=none"],
        ["head=fc", "teacher={name: self, layers: [0, 1], layer_norm: layer}"],
    ],
    ids=["colour", "90 % x 8", "no colour", "drop path", "64 px", "no projector", "data2vec's target"],
)
def test_trains(changes: list[str]) -> None:
    testing.check_recipe("extrema-micro", [*SMALL, *changes])


@given(st.integers(0, 10**6), st.sampled_from([(5, 0.8, 14), (8, 0.9, 14), (5, 0.8, 8), (2, 0.5, 6)]))
@settings(max_examples=25, deadline=None)
def test_folds_of_one_draw_share_no_patch(seed: int, setting: tuple[int, float, int]) -> None:
    folds, ratio, side = setting
    config = load("extrema", [f"mask.folds={folds}", f"mask.ratio={ratio}"]).masks["main"]
    visible = ~config.build().sample((side, side), np.random.default_rng(seed))
    assert visible.sum(1).tolist() == [int(side**2 * (1 - ratio))] * folds
    assert visible.sum(0).max() == 1


@given(st.integers(0, 4))
@settings(max_examples=5, deadline=None)
def test_a_folds_class_token_sees_its_own_patches_alone(fold: int) -> None:
    made = objective().eval()
    batch = draw(made)
    view, masks = batch.views["main"], batch.masks["main"]
    mask = masks[fold]
    seen = made.student(view, mask)
    for number, other in enumerate(masks):
        changed = made.student(noisy(view, ~other.hidden), mask)
        moved = (changed.prefix - seen.prefix).abs().amax((1, 2))
        assert (moved > 0).all() if number == fold else not moved.any()


def test_patches_do_not_see_the_class_token() -> None:
    made = objective().eval()
    batch = draw(made)
    view, mask = batch.views["main"], batch.masks["main"][0]
    before = made.student(view, mask)
    with torch.no_grad():
        made.student.prefix.add_(1)
    after = made.student(view, mask)
    assert after.tokens.equal(before.tokens)
    assert not after.prefix.equal(before.prefix)


def test_each_visible_token_lands_on_its_own_slot() -> None:
    """With one block and all but a patch hidden, its token is that of the patch alone: f(pixels, position)."""
    made = objective("mask.folds=2", "mask.ratio=0.98").eval()
    batch = draw(made)
    view, mask = batch.views["main"], batch.masks["main"][0]
    assert mask.visible_index.shape[1] == 1
    trunk = made.student.trunk
    x = trunk.patch_embed((view.pixels() - trunk.mean) / trunk.std)
    x = (x + trunk.pos_embed).take_along_dim(mask.visible_index.unsqueeze(-1), 1)
    for block in trunk.blocks:
        x, _ = block(x)
    assert_close(made.student(view, mask).at(mask.visible_index), made.student.norm(x), rtol=0, atol=1e-5)


def test_one_class_block_by_its_formula() -> None:
    torch.manual_seed(0)
    block: Any = plugins()["students"]["extrema"].Config(**TOY).build().class_blocks[0].double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    token, patches = (torch.randn(2, n, 16, dtype=torch.float64) for n in (1, 7))
    normed, attn = block.norm1(torch.cat([token, patches], 1)), block.attn
    mixed = []
    for head in (slice(0, 8), slice(8, 16)):
        q, k, v = (x[..., head] for x in (attn.q(normed[:, :1]), attn.k(normed), attn.v(normed)))
        mixed.append((q @ k.mT / 8**0.5).softmax(-1) @ v)
    c = token + block.ls1.gamma * attn.proj(torch.cat(mixed, -1))
    assert_close(block(token, patches), c + block.ls2.gamma * block.mlp(block.norm2(c)), rtol=0, atol=1e-12)
    order = torch.randperm(7)
    assert_close(block(token, patches[:, order]), block(token, patches), rtol=0, atol=1e-12)


def test_the_teacher_answers_once_a_step_for_all_folds_and_without_the_predictor() -> None:
    made = objective().eval()
    teacher, head, calls = made.teachers["mim"], made.terms["mim"].head, []
    teacher.register_forward_hook(lambda *_: calls.append("teacher"))
    made.student.register_forward_hook(lambda *_: calls.append("student"))
    head.predictor.register_forward_hook(lambda *_: calls.append("predictor"))
    batch = draw(made)
    steps = made.predictions(batch)["mim"]
    assert sorted(calls) == ["predictor"] * 5 + ["student"] * 5 + ["teacher"]
    whole = teacher.copy["student"](batch.views["other"])
    assert whole.tokens.shape[1] == 64
    target = teacher.copy["head"].projector(whole.prefix)
    assert {name.partition(".")[0] for name in teacher.copy["head"].state_dict()} == {"projector"}
    for step, mask in zip(steps, batch.masks["main"], strict=True):
        assert step.target.equal(target)
        assert not step.target.requires_grad
        token = made.student(batch.views["main"], mask).prefix
        assert_close(step.preds[0], head.predictor(head.projector(token)), rtol=0, atol=1e-5)


def test_the_momentum_copy_follows_encoder_and_projector_before_the_target() -> None:
    made = objective("teacher.decay=0.75")
    copy = made.teachers["mim"].copy
    live = {"student": made.student, "head": made.terms["mim"].head}
    before = {name: parameter.clone() for name, parameter in copy.named_parameters()}
    made.on_step_start(Progress(0, 10, 5))
    assert all(parameter.equal(before[name]) for name, parameter in copy.named_parameters()), "nothing to average yet"
    made.on_step_start(Progress(1, 10, 5))
    for name, parameter in copy.named_parameters():
        part, _, inner = name.partition(".")
        assert_close(parameter, 0.75 * before[name] + 0.25 * live[part].get_parameter(inner), rtol=0, atol=1e-6)
    made.on_step_end(Progress(1, 10, 5))
    made.on_epoch_end(Progress(1, 10, 5))
    assert copy["head"].projector[0].weight.equal(dict(copy.named_parameters())["head.projector.0.weight"])


def test_orthogonal_predictions_cost_two_and_equal_ones_nothing() -> None:
    term = load("extrema-micro").terms["mim"]
    loss: Any = term.loss.build(term.teacher.build(load("extrema-micro").student.geometry).spec)
    target = torch.eye(64)[:3].unsqueeze(1)
    for pred, cost in ((3 * target, 0.0), (target.roll(1, -1), 2.0), (-target, 4.0)):
        assert (term.weight(0.5) * loss(pred, target)).flatten().tolist() == pytest.approx([cost] * 3)


def test_without_colour_teacher_and_student_read_one_image() -> None:
    coloured, plain = (
        draw(objective(*changes)).views for changes in ((), ("views.main.jitter=0", "views.main.grey=0"))
    )
    boxes = [view.box for views in (coloured, plain) for view in views.values() if view.box is not None]
    assert len(boxes) == 4
    assert all(box.equal(boxes[0]) for box in boxes), "crops are shared"
    assert not coloured["main"].image.equal(coloured["other"].image)
    made = objective("view=main", "views.main.jitter=0", "views.main.grey=0").eval()
    batch = draw(made)
    assert batch.views["main"].image.equal(plain["main"].image)
    (step, *_) = made.predictions(batch)["mim"]
    assert step.dense[:, :1].equal(made.teachers["mim"](batch.views["main"]).image)


def test_the_base_size_has_as_many_tensors_and_values_as_the_official_checkpoint() -> None:
    """398 tensors and 244.1 M values, of which two position tables of 196 x 768 are not stored here."""
    recipe = load("extrema")
    term = recipe.terms["mim"]
    with torch.device("meta"):
        student = recipe.student.build()
        head: Any = term.head.build(student, 256)
        teacher: Any = term.teacher.build(student.geometry)
        teacher.bind(student, head)
    tensors = [p for part in (student, head, teacher) for p in part.parameters()]
    assert len(tensors) == 398 - 2
    assert sum(p.numel() for p in tensors) / 1e6 == pytest.approx(244.1 - 2 * 196 * 768 / 1e6, abs=0.05)


def test_start_values_are_xavier_in_every_linear_layer() -> None:
    torch.manual_seed(0)
    student: Any = plugins()["students"]["extrema"].Config(dim=192, num_heads=4, depth=1).build()
    head: Any = plugins()["heads"]["extrema"].Config(hidden=512).build(student, 128)
    for linear in (
        student.class_blocks[1].mlp.fc1,
        student.class_blocks[0].attn.q,
        head.projector[3],
        head.predictor[0],
    ):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert bound * 0.98 < linear.weight.abs().max() <= bound
        assert not linear.bias.any()
    assert student.prefix.std().item() == pytest.approx(0.02, rel=0.2)
    assert student.class_blocks[0].ls1.gamma.unique().tolist() == pytest.approx([0.1])


def test_layers_for_layer_wise_rates() -> None:
    student: Any = plugins()["students"]["extrema"].Config(**TOY).build()
    layers = {name: student.layer_of(name) for name, _ in student.named_parameters()}
    assert {layer for name, layer in layers.items() if name.startswith("trunk.patch_embed")} == {0}
    assert {layer for name, layer in layers.items() if name.startswith("trunk.blocks.1")} == {2}
    rest = {layer for name, layer in layers.items() if not name.startswith("trunk")}
    assert rest == {student.config.num_layers + 1} == {3}


def test_taps_are_the_trunks_with_the_waiting_class_token_first() -> None:
    student: Any = plugins()["students"]["extrema"].Config(**TOY).build()
    view, taps = View(torch.rand(2, 3, 16, 24)), (Tap(1), Tap(0, "mlp"))
    found, trunk = student(view, None, taps).taps, student.trunk(view, None, taps).taps
    for tap, first in zip(taps, (student.prefix[0], torch.zeros(1, 16)), strict=True):
        assert found[tap][:, 1:].equal(trunk[tap])
        assert found[tap][:, :1].equal(first.expand(2, 1, 16))


def test_the_head_reads_patches_too() -> None:
    """Asked about patches, which ExtreMA never does, it answers from their tokens, the class token first."""
    student: Any = plugins()["students"]["extrema"].Config(**TOY).build()
    head: Any = plugins()["heads"]["extrema"].Config(hidden=8).build(student, 5)
    encoded: Encoded = student(View(torch.rand(2, 3, 16, 24)))
    index = torch.tensor([[3, 0], [7, 2]])
    classed = head(encoded, Query(index, include_class=True))
    assert_close(classed[:, :1], head(encoded, Query(None)))
    assert_close(classed[:, 1:], head.predictor(head.projector(encoded.at(index))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["mask.folds=6"], "takes 1 to 32"),
        (["student.image_size=230"], r"nearest image_size \[224, 224\]"),
        (["student.num_heads=5"], "dim 768 does not divide into num_heads 5"),
        (["student.dim=770"], "multiple of 4"),
        (["student.mean=[0.5]"], "mean and std need channels: 3 numbers each"),
        (["where=hidden"], "at hidden positions, but student 'extrema' has none there"),
        (["mask={name: block, count: 75}"], "needs the same count in every image"),
        (["mask=none"], "masks hide nothing"),
        (["teacher.layers=[12]", "teacher.head=none", "teacher.head_dim=null"], "has blocks 0 to 11"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_recipe(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load("extrema", changes)


@pytest.mark.slow
def test_two_processes_compute_what_one_does() -> None:
    testing.check_processes("extrema-micro", [*SMALL, "student.drop_path=0"])
