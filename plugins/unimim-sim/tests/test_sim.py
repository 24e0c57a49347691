"""SIM's student, head, positions, loss and recipes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from unimim_sim.positions import place, relative_code

from unimim import Batch, Mask, Objective, Progress, Query, RecipeError, TargetSpec, View, load, plugins
from unimim.layers import BatchNorm, sincos_2d
from unimim.testing import check_head, check_loss, check_processes, check_recipe, check_student

SMALL = [
    "student.image_size=32",
    "student.patch_size=4",
    "student.dim=24",
    "student.depth=2",
    "student.num_heads=2",
    "head.dim=16",
    "head.num_heads=2",
    "teacher.head_dim=16",
    "precision=float32",
]
TOY = {"name": "sim", "image_size": (16, 24), "patch_size": 4, "dim": 16, "depth": 2, "num_heads": 2}
HEAD = {"name": "sim_decoder", "dim": 8, "projector_depth": 1, "predictor_depth": 2, "num_heads": 2}
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
OMEGA = 10000.0 ** -(torch.arange(4) / 4)


def crop(*box: float, flip: bool = False) -> tuple[Tensor, Tensor]:
    return torch.tensor([box]), torch.tensor([flip])


def small_batch(num_images: int = 4) -> Batch:
    """Noise, seen twice by crops of its own, half of the patches hidden."""
    draw = torch.Generator().manual_seed(0)

    def view() -> View:
        corner, size = torch.rand(2, num_images, 2, generator=draw) / 2
        box = torch.cat([corner, size + 0.25], 1)
        flip = torch.rand(num_images, generator=draw) < 0.5
        return View(torch.rand(num_images, 3, 32, 32, generator=draw), {}, box, flip)

    hidden = torch.rand(num_images, 64, generator=draw).argsort(1) < 38
    return Batch({"main": view(), "other": view()}, {"main": (Mask.from_hidden(hidden, 38),)}, torch.arange(num_images))


def built(*overrides: str) -> Any:
    torch.manual_seed(0)
    return Objective(load("sim-micro", [*SMALL, *overrides]))


@pytest.mark.parametrize(
    "changes", [{}, {"channels": 4, "mean": (0.5,) * 4, "std": (0.2,) * 4}, {"depth": 1, "dim": 24}]
)
def test_the_student_keeps_its_contract(changes: dict[str, Any]) -> None:
    check_student(TOY | changes)


@pytest.mark.parametrize("changes", [{}, {"projector_depth": 0}, {"predictor_depth": 1, "dim": 16}])
@pytest.mark.parametrize("student", [TOY, TOY | {"name": "vit"}], ids=["drops", "dense"])
def test_the_head_keeps_its_contract(changes: dict[str, Any], student: dict[str, Any]) -> None:
    head = HEAD | changes
    check_head(head, student, out_dim=head["dim"])


@pytest.mark.parametrize("weight", [0.0, 0.02, 2.0])
def test_the_loss_keeps_its_contract(weight: float) -> None:
    check_loss({"name": "unigrad", "negative_weight": weight}, distance=weight == 0)


@pytest.mark.parametrize(
    "overrides", [SMALL, [*SMALL, "student.patch_size=8", "mask.min_block=2", "head.projector_depth=2"]]
)
def test_the_recipe_trains(overrides: list[str]) -> None:
    check_recipe("sim-micro", overrides)


@pytest.mark.slow
def test_two_processes_compute_what_one_does() -> None:
    """BatchNorms of student and teacher and the matrix of the loss are of all images; large enough a share to show."""
    check_processes("sim-micro", [*SMALL, "loss.negative_weight=2"])


def test_the_patch_embedding_never_moves() -> None:
    """No gradient and no weight decay; so the momentum copy, which follows everything else, does not move either."""
    objective, batch = built().train(), small_batch()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.1, weight_decay=0.5)
    before = {name: x.clone() for name, x in objective.named_parameters()}
    for step in range(2):
        objective.on_step_start(Progress(step, 10, 5))
        objective(batch)["loss"].backward()
        optimizer.step()
    still = {name for name, x in objective.named_parameters() if x.equal(before[name])}
    embedding = {f"{part}patch_embed.proj.{kind}" for part in ("student.vit.",) for kind in ("weight", "bias")}
    assert still == embedding | {f"teachers.mim.copy.{name}" for name in embedding}
    assert all(not x.requires_grad for name, x in objective.named_parameters() if name in embedding)


def test_the_momentum_copy_has_no_predictor_and_answers_with_the_projector() -> None:
    objective, batch = built().train(), small_batch()
    copied = {name.split(".")[0] for name, _ in objective.teachers["mim"].copy["head"].named_parameters()}
    assert copied == {"embed", "projector"}
    target = objective.teachers["mim"](batch.views["other"]).tokens
    encoded = objective.student(batch.views["other"])
    head = objective.terms["mim"].head
    assert_close(target, head.project(encoded)[1])
    assert_close(head.target(encoded, Query(None)), head.project(encoded)[0][:, :1])


def test_a_teacher_of_another_width_than_the_head_is_told_how_to_set_it() -> None:
    with pytest.raises(ValueError, match=r"set teacher\.head_dim=16"):
        built("teacher.head_dim=24")(small_batch())


def test_the_blocks_of_the_head_normalize_by_batches() -> None:
    head = built().terms["mim"].head
    norms = [norm for block in (*head.projector, *head.predictor) for norm in (block.norm1, block.norm2)]
    assert len(norms) == 6
    assert all(isinstance(norm, BatchNorm) and norm.world for norm in norms)


def test_the_same_crop_twice_has_the_absolute_code() -> None:
    """Mirrored alike or not; and the code of equal sizes beside it."""
    for flip in (False, True):
        same = crop(0.13, 0.21, 0.37, 0.59, flip=flip)
        code = relative_code((3, 5), same, same, OMEGA)
        assert_close(code[0, :, :16], sincos_2d((3, 5), 16, "row"), rtol=0, atol=1e-6)
        assert_close(code[0, :, 16:], torch.tensor([0.0, 1.0]).repeat_interleave(4).repeat(2).expand(15, -1))


def test_a_mirrored_crop_has_the_mirrored_code() -> None:
    """Whichever of the two is mirrored."""
    box, table = (0.13, 0.21, 0.37, 0.59), sincos_2d((3, 5), 16, "row").view(3, 5, 16)
    for flip in (False, True):
        code = relative_code((3, 5), crop(*box, flip=flip), crop(*box, flip=not flip), OMEGA)
        assert_close(code[0, :, :16].view(3, 5, 16), table.flip(1), rtol=0, atol=1e-6)


def test_the_patches_of_a_quarter() -> None:
    """The lower right quarter of a 4 x 4 grid: its first centre lies 1/4 into patch (2, 2)."""
    y, x, scale = place((4, 4), (WHOLE, torch.tensor([False])), crop(0.5, 0.5, 0.5, 0.5))
    expected = torch.tensor([1.75, 2.25, 2.75, 3.25])
    assert_close(y.view(4, 4), expected[:, None].expand(4, 4))
    assert_close(x.view(4, 4), expected.expand(4, 4))
    assert_close(scale, torch.tensor([[0.5, 0.5]]))
    _, x, _ = place((4, 4), crop(0.0, 0.0, 1.0, 1.0, flip=True), crop(0.5, 0.5, 0.5, 0.5))
    assert_close(x.view(4, 4), (3 - expected).expand(4, 4))


SIDES = st.tuples(*[st.integers(8, 64)] * 2)


@given(SIDES, st.data(), st.booleans(), st.booleans())
def test_places_are_those_of_crops_of_mirrored_images(
    sides: tuple[int, int], data: Any, first: bool, second: bool
) -> None:
    """Officially the image is mirrored, then cropped, and the formula distinguishes whether one of the two was mirrored."""
    height, width = sides

    def draw() -> tuple[int, int, int, int]:
        h, w = data.draw(st.integers(2, height)), data.draw(st.integers(2, width))
        return data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w)), h, w

    (i1, j1, h1, w1), (i2, j2, h2, w2) = draw(), draw()  # as official code measures them: in the image it mirrored
    grid = 4
    cell = torch.arange(grid, dtype=torch.float64) + 0.5
    y = h2 / h1 * cell + (i2 - i1) / h1 * grid - 0.5
    x = w2 / w1 * cell + (j2 - j1) / w1 * grid - 0.5
    if first != second:
        x = -w2 / w1 * cell + (width - j1 - j2) / w1 * grid - 0.5

    def ours(i: int, j: int, h: int, w: int, flip: bool) -> tuple[Tensor, Tensor]:
        left = width - j - w if flip else j  # in the image as it is
        box = torch.tensor([[i / height, left / width, h / height, w / width]], dtype=torch.float64)
        return box, torch.tensor([flip])

    found = place((grid, grid), ours(i1, j1, h1, w1, first), ours(i2, j2, h2, w2, second))
    assert_close(found[0].view(grid, grid), y[:, None].expand(grid, grid), rtol=0, atol=1e-9)
    assert_close(found[1].view(grid, grid), x.expand(grid, grid), rtol=0, atol=1e-9)


def test_every_visible_token_lands_on_its_own_place() -> None:
    """Reordered with their positions the tokens say the same; reordered alone they do not."""
    objective, batch = built().eval(), small_batch()
    encoded = objective.student(batch.views["main"], *batch.masks["main"])
    other, head = batch.views["other"], objective.terms["mim"].head
    query = Query(torch.arange(64).expand(4, -1), box=other.box, flip=other.flip)
    order = torch.randperm(encoded.tokens.shape[1], generator=torch.Generator().manual_seed(1))
    said = head(encoded, query)
    moved = replace(encoded, tokens=encoded.tokens[:, order], index=encoded.index[:, order])
    assert_close(head(moved, query), said, rtol=0, atol=1e-5)
    assert (head(replace(moved, index=encoded.index), query) - said).abs().max() > 1e-3


def test_predictions_depend_on_where_the_other_view_lies() -> None:
    objective, batch = built().eval(), small_batch()
    encoded = objective.student(batch.views["main"], *batch.masks["main"])
    other, head = batch.views["other"], objective.terms["mim"].head
    query = Query(torch.arange(64).expand(4, -1), box=other.box, flip=other.flip)
    mirrored = replace(query, flip=~other.flip)
    assert (head(encoded, mirrored) - head(encoded, query)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="give every View its box and flip"):
        head(encoded, replace(query, box=None))


def test_unigrad_is_the_sum_over_pairs_of_queries() -> None:
    """p^T C p = sum over j of (p^T t_j)^2 / n: as officially, through an n x n matrix."""
    draw = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 3, 5, 8, generator=draw)
    loss = plugins()["losses"]["unigrad"].Config(negative_weight=0.3).build(TargetSpec(8))
    flat, wanted = pred.flatten(0, 1), target.flatten(0, 1)
    negative = (flat @ wanted.T).square().mean(1)
    expected = ((flat - wanted).square().sum(1) + 0.3 * negative) / 8
    assert_close(loss(pred, target).flatten(), expected)


def test_what_unigrad_costs_without_an_answer_and_with_one_answer_for_all() -> None:
    """Nothing said: |t|^2 / D = 1 behind a LayerNorm. The right answer, lambda times 1 where targets are uncorrelated, and
    lambda times D where all are one: that is what a collapse costs."""
    dim = 16
    loss = plugins()["losses"]["unigrad"].Config(negative_weight=0.02).build(TargetSpec(dim))
    apart = (dim**0.5 * torch.eye(dim)).unsqueeze(0)
    assert_close(loss(torch.zeros(1, dim, dim), apart), torch.ones(1, dim))
    assert_close(loss(apart, apart), torch.full((1, dim), 0.02))
    alike = F.layer_norm(torch.randn(dim, generator=torch.Generator().manual_seed(0)), (dim,), eps=0).expand(
        1, dim, dim
    )
    assert_close(loss(alike, alike), torch.full((1, dim), 0.02 * dim))


def test_unigrads_matrix_is_of_valid_queries_and_has_no_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 3, 5, 8, generator=draw)
    loss = plugins()["losses"]["unigrad"].Config(negative_weight=0.3).build(TargetSpec(8))
    valid = torch.tensor([5, 2, 0])[:, None] > torch.arange(5)
    spoilt = torch.where(valid.unsqueeze(-1), target, 1e3)
    assert_close(loss(pred, spoilt, valid)[valid], loss(pred, target, valid)[valid])
    flat = target[valid]
    assert_close(loss.correlation(target, valid), flat.T @ flat / 7)
    assert not loss.correlation(target.requires_grad_(), valid).requires_grad


def test_the_base_size_has_the_tensors_of_the_official_file() -> None:
    """450, of which two are fixed tables and one is the copy of the mask token."""
    with torch.device("meta"):
        state = Objective(load("sim")).state_dict()
    assert len(state) == 450 - 3


def test_the_recipe_is_the_row_but_for_the_norm_of_the_target() -> None:
    axes = {"teacher": "EMA", "student": "ViT", "head": "Decoder", "norm": "LayerNorm", "loss": "UniGrad"}
    assert load("sim").axes() == load("sim-micro").axes() == axes
    assert load("sim").masks["main"].num_hidden((14, 14)) == 118
    assert load("sim").optimization.peak(4096) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["mask.exact=false"], "needs the same count in every image"),
        (["mask=none"], "masks hide nothing"),
        (["view=side"], "view 'side' is not made by views 'pair'"),
        (["student.image_size=30"], r"nearest image_size \[32, 32\]"),
        (["student.num_heads=5"], "dim 768 does not divide into num_heads 5"),
        (["student.dim=770"], "multiple of 4"),
        (["student.mean=[0.5]"], "mean and std need channels: 3 numbers each"),
        (["head.num_heads=5"], "dim 768 does not divide into num_heads 5"),
        (["head.dim=770"], "multiple of 4"),
        (["loss.negative_weight=-1"], "greater than or equal to 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_recipe(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load("sim", changes)
