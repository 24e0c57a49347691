"""Contracts of the parts, what may change what, and what the recipes refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from unimim_sdae.folded import Folded
from unimim_sdae.token_cosine import TokenCosine

from unimim import Batch, Mask, Objective, Progress, RecipeError, Sampling, TargetSpec, View, load, testing

DROP = {**testing.TOY, "masking": "drop"}
SMALL = ["student.dim=16", "student.depth=2", "student.num_heads=2", "head.dim=8", "head.depth=1", "head.num_heads=2"]
COPY = "teachers.mim.copy.student."


def prepared(*overrides: str, seed: int = 0) -> tuple[Any, Batch]:
    torch.manual_seed(seed)
    objective = Objective(load("sdae-micro", [*SMALL, *overrides]))
    sampling = Sampling(objective.recipe, objective.student.geometry, objective.renditions)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 80, 96), dtype=torch.uint8, generator=draw)
    return objective, sampling.collate([sampling(image, 0, index) for index, image in enumerate(images)])


# Contracts


@pytest.mark.parametrize("changes", [{}, {"start": "student"}, {"region": "full"}, {"decay": 0.5}])
@pytest.mark.parametrize("student", [DROP, DROP | {"positions": "sincos"}, DROP | {"class_token": False}])
def test_keeps_the_contract_of_a_teacher(changes: dict[str, Any], student: dict[str, Any]) -> None:
    testing.check_teacher({"name": "sdae", **changes}, student)


def test_sees_whole_images_of_students_with_mask_tokens_only() -> None:
    testing.check_teacher({"name": "sdae", "region": "full"})
    with pytest.raises(ValueError, match="use masking: drop, or region: full"):
        testing.check_teacher({"name": "sdae"})


@pytest.mark.parametrize("groups", [1, 7])
def test_keeps_the_contract_of_a_loss(groups: int) -> None:
    loss = {"name": "token_cosine", "groups": groups}
    testing.check_loss(loss)
    testing.check_loss({"name": "sum", "losses": [{"loss": loss}, {"loss": "l2", "weight": 0.5}]})


@pytest.mark.parametrize("changes", [{}, {"ratio": 0.5, "groups": 2}, {"groups": 1}])
def test_keeps_the_contract_of_a_mask(changes: dict[str, Any]) -> None:
    testing.check_mask({"name": "folded", **changes}, [(4, 6), (8, 8), (14, 14)])


@pytest.mark.parametrize("overrides", [[], ["student.image_size=32", "student.patch_size=4"], ["loss=cosine"]])
def test_trains(overrides: list[str]) -> None:
    testing.check_recipe("sdae-micro", [*SMALL, *overrides])


# The mask


@settings(deadline=None, max_examples=50, derandomize=True)
@given(seed=st.integers(0, 2**31), groups=st.sampled_from([1, 2, 3, 6]))
def test_every_hidden_patch_is_in_one_of_the_equal_groups(seed: int, groups: int) -> None:
    sampler, rng = Folded.Config(groups=groups).build(), np.random.default_rng(seed)
    hidden = sampler.sample((4, 6), rng)
    group = sampler.group(hidden, rng)
    assert group.dtype == np.int64
    assert np.bincount(group[hidden], minlength=groups).tolist() == [18 // groups] * groups
    mask = Mask.from_hidden(torch.from_numpy(hidden), 18).grouped(torch.from_numpy(group), groups)
    dealt = mask.hidden_index.view(groups, -1)
    assert (torch.from_numpy(group)[0][dealt] == torch.arange(groups)[:, None]).all()


def test_any_two_hidden_patches_meet_as_often_as_chance_has_it() -> None:
    sampler, rng, draws = Folded.Config().build(), np.random.default_rng(0), 4000
    together, both = np.zeros((16, 16)), np.zeros((16, 16))
    for _ in range(draws):
        hidden = sampler.sample((4, 4), rng)
        group = np.where(hidden, sampler.group(hidden, rng), -1)[0]
        both += hidden.T & hidden
        together += (group[:, None] == group) & (hidden.T & hidden)
    others = ~np.eye(16, dtype=bool)
    meeting = 3 / 11  # three of the eleven other hidden patches share a group of four
    deviation = np.sqrt(meeting * (1 - meeting) / both[others])
    assert (np.abs(together[others] / both[others] - meeting) < 5 * deviation).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 4}, r"hides 147 of 196 patches, not 4 equal groups of two or more; nearest ratio 0.752551"),
        ({"ratio": 0.01}, r"nearest ratio 0.0280612"),
        ({"groups": 100}, r"196 patches are too few for 100 groups of two"),
    ],
)
def test_counts_that_do_not_divide_are_refused_with_the_nearest_ratio(changes: dict[str, Any], message: str) -> None:
    config = Folded.Config(**changes)
    with pytest.raises(ValueError, match=message):
        config.num_hidden((14, 14))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(ratio=st.floats(0.02, 0.98), groups=st.integers(1, 9), side=st.integers(5, 30))
def test_the_nearest_ratio_works(ratio: float, groups: int, side: int) -> None:
    try:
        count = Folded.Config(ratio=ratio, groups=groups).num_hidden((side, side))
    except ValueError as error:
        nearest = float(str(error).rpartition("nearest ratio ")[2])
        count = Folded.Config(ratio=nearest, groups=groups).num_hidden((side, side))
        assert abs(nearest - ratio) <= (groups + 1.5) / side**2 or count == 2 * groups
    assert count is not None
    assert count % groups == 0


# The loss


def distance(pred: Tensor, target: Tensor, groups: int = 3) -> Tensor:
    loss: Any = TokenCosine.Config(groups=groups).build(TargetSpec(pred.shape[-1]))
    return loss(pred, target)  # type: ignore[no-any-return]


def pair(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, 12, 5, generator=draw), torch.randn(2, 12, 5, generator=draw)


def test_a_cosine_for_every_channel_of_every_group() -> None:
    pred, target = pair(0)
    value = distance(pred, target)
    for image in range(2):
        for group in range(3):
            run = slice(4 * group, 4 * group + 4)
            p, t = pred[image, run].double(), target[image, run].double()
            by_hand = 1 - sum(float(p[:, d] @ t[:, d] / p[:, d].norm() / t[:, d].norm()) for d in range(5)) / 5
            assert value[image, run].tolist() == pytest.approx([by_hand] * 4, abs=1e-6)
    official = 1 - F.cosine_similarity(target.view(6, 4, 5), pred.view(6, 4, 5)).mean()
    assert_close(value.mean(), official)


def test_known_values() -> None:
    pred, target = pair(1)
    assert_close(distance(target, target), torch.zeros(2, 12), rtol=0, atol=1e-6)
    assert_close(distance(-target, target), torch.full((2, 12), 2.0))
    assert distance(torch.zeros_like(pred), target).equal(torch.ones(2, 12)), "predicting zero costs one"


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=st.integers(0, 1000))
def test_what_the_value_does_not_depend_on(seed: int) -> None:
    """The order of tokens inside a group, and a positive factor of each channel; a factor of each token it does see."""
    pred, target = pair(seed)
    draw = torch.Generator().manual_seed(seed)
    order = torch.cat([4 * group + torch.randperm(4, generator=draw) for group in range(3)])
    value = distance(pred, target)
    assert_close(distance(pred[:, order], target[:, order]), value)
    assert_close(distance(pred * (0.5 + torch.rand(5, generator=draw)), target), value)
    assert not torch.allclose(distance(pred * (0.5 + torch.rand(12, 1, generator=draw)), target), value)


# The teacher


def test_a_group_sees_itself_alone() -> None:
    objective, batch = prepared()
    teacher, view, (mask,) = objective.teachers["mim"], batch.views["main"], batch.masks["main"]
    before, groups = teacher(view, mask).tokens, mask.hidden_index.view(4, 3, 16)
    assert (before[~mask.hidden] == 0).all()
    for number in range(3):
        changed = inverted(view, torch.zeros_like(mask.hidden).scatter(1, groups[:, number], True))
        moved = (teacher(changed, mask).tokens - before).abs().amax(-1).gather(1, mask.hidden_index).view(4, 3, 16)
        assert (moved[:, number] > 0).all()
        assert moved.count_nonzero() == 4 * 16, "other groups by exactly 0.0"
    assert teacher(inverted(view, ~mask.hidden), mask).tokens.equal(before), "visible patches by exactly 0.0"


def inverted(view: View, where: Tensor) -> View:
    pixels = where.view(-1, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return replace(view, image=torch.where(pixels, 255 - view.image, view.image))


def test_the_sequences_of_the_teacher_are_groups_with_a_class_token() -> None:
    objective, batch = prepared()
    lengths: list[torch.Size] = []
    objective.teachers["mim"].copy["student"].blocks[0].register_forward_hook(
        lambda module, args, out: lengths.append(args[0].shape)
    )
    objective(batch)
    assert lengths == [(4 * 3, 1 + 16, 16)]


def test_hidden_pixels_reach_the_target_and_no_prediction() -> None:
    objective, batch = prepared()
    changed = inverted(batch.views["main"], batch.masks["main"][0].hidden)
    (before,) = objective.predictions(batch)["mim"]
    (after,) = objective.predictions(replace(batch, views={"main": changed}))["mim"]
    assert before.preds[0].equal(after.preds[0])
    assert ((before.target - after.target).abs().amax(-1) > 0).all()


def test_own_start_is_another_network_of_timms_law() -> None:
    objective, _ = prepared("student.dim=64", "student.depth=4")
    own, student = objective.teachers["mim"].copy["student"], objective.student
    same = [name for name, p in own.named_parameters() if p.equal(student.get_parameter(name)) and "norm" not in name]
    assert all(name.endswith("bias") for name in same)
    for weight in (own.pos_embed, own.blocks[1].mlp.fc1.weight, own.blocks[3].attn.qkv.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert weight.mean().item() == pytest.approx(0, abs=0.002)
    bound = (3 * 8 * 8) ** -0.5  # torch's convolutions: uniform
    assert own.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_the_students_start_is_the_student() -> None:
    objective, _ = prepared("teacher.start=student")
    own, student = objective.teachers["mim"].copy["student"], objective.student
    assert all(p.equal(student.get_parameter(name)) for name, p in own.named_parameters())
    assert own.pos_embed.equal(student.pos_embed)


def test_positions_and_weights_of_the_start_decay_epoch_by_epoch() -> None:
    """With a student that stands still, e - s shrinks by d_1 d_2 ... d_E; steps change nothing."""
    objective, _ = prepared('teacher.decay={"start": 0.5, "end": 0.9, "shape": "cosine"}')
    state = objective.state_dict()
    followed = {name: objective.student.state_dict().get(name, objective.student.pos_embed) for name in names(state)}
    start = {name: state[COPY + name].clone() for name in followed}
    factor, decay = 1.0, objective.recipe.terms["mim"].teacher.decay
    for epoch in range(4):
        for step in range(3):
            objective.on_step_start(Progress(3 * epoch + step, 12, 3))
            objective.on_step_end(Progress(3 * epoch + step, 12, 3))
        objective.on_epoch_end(Progress(3 * epoch + 2, 12, 3))
        factor *= decay(epoch / 4)
        for name, target in followed.items():
            expected = target + factor * (start[name] - target)
            assert_close(objective.state_dict()[COPY + name], expected, rtol=0, atol=1e-6)
    assert factor == pytest.approx(0.5 * decay(0.25) * 0.7 * decay(0.75))


def names(state: dict[str, Tensor]) -> list[str]:
    found = [name.removeprefix(COPY) for name in state if name.startswith(COPY)]
    assert "pos_embed" in found
    return found


def test_checkpoints_hold_the_teacher_with_its_positions() -> None:
    (objective, batch), (other, _) = prepared(), prepared(seed=1)
    objective.on_epoch_end(Progress(0, 10, 1))
    assert other(batch)["loss"] != objective(batch)["loss"]
    other.load_training_state(objective.training_state())
    assert other(batch)["loss"].equal(objective(batch)["loss"])


# The recipes


def test_what_does_not_fit_is_refused() -> None:
    for change, message in (
        ("loss.groups=2", "takes 2 groups of hidden patches, but mask 'folded' deals them to 3; give both the same"),
        ("mask={name: random, ratio: 0.75}", "but mask 'random' deals them to 1"),
        ("where=all", "takes hidden patches group by group; use where: hidden"),
        ("teacher.decay=1.5", "decay is a share, from 0 to 1, not 1.5 to 1.5"),
        ("mask.groups=5", "not 5 equal groups of two or more; nearest ratio"),
        ("loss={name: sum, losses: [{loss: {name: token_cosine, groups: 2}}]}", "loss 'sum' takes 2 groups"),
    ):
        with pytest.raises(RecipeError, match=message):
            load("sdae-micro", [change])


def test_the_published_size() -> None:
    """AbrahamYabo/SdAE @ 2e08b31: 254 tensors of the student, two of them fixed tables, and 150 of the teacher."""
    recipe = load("sdae")
    assert recipe.masks["main"].num_hidden((14, 14)) == 3 * 49
    assert recipe.optimization.peak(recipe.batch) == pytest.approx(8e-4, rel=1e-3)
    assert recipe.axes() == load("sdae-micro").axes()
    with torch.device("meta"):
        state = Objective(recipe).state_dict()
    teacher = [name for name in state if name.startswith(COPY)]
    assert len(teacher) == 150
    assert len(state) - len(teacher) == 254 - 2


@pytest.mark.slow
def test_a_sharded_teacher_answers_and_follows_as_a_whole_one() -> None:
    script = Path(__file__).with_name("sharded.py")
    testing.in_processes(script, *SMALL, "student.image_size=32", "student.patch_size=4")


@pytest.mark.slow
def test_two_processes_compute_what_one_does() -> None:
    testing.check_processes("sdae-micro", [*SMALL, "student.drop_path=0", "precision=float32"])
