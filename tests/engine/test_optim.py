"""Parameter groups and plans."""

from __future__ import annotations

import math

import pytest

from unimim import Objective
from unimim.engine.optim import make_optimizer, parameter_groups, set_decay, set_rate
from unimim.engine.run import Plan, split
from unimim.schedule import Optimization

from .toys import recipe


def test_every_trainable_parameter_is_in_one_group_and_vectors_are_not_decayed() -> None:
    objective = Objective(recipe("beit-micro"))
    policy = Optimization(lr=1.0, weight_decay=0.1, no_decay=("prefix",))
    groups = parameter_groups(objective, policy, objective.depth_of)
    names = {id(parameter): name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    grouped = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    plain = {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert "student.prefix" in plain
    assert "student.mask_token" not in plain
    assert "student.shared_bias.table" not in plain
    assert "student.blocks.0.attn.q_bias" in plain
    assert "student.blocks.0.ls1.gamma" in plain


def test_layer_decay_falls_from_the_head_to_the_embeddings() -> None:
    objective = Objective(recipe("beit-micro"))
    optimizer = make_optimizer(objective, Optimization(lr=1.0, layer_decay=0.5), objective.depth_of)
    set_rate(optimizer, 2.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in objective.named_parameters() if p.requires_grad}
    assert named["student.patch_embed.proj.weight"] == 2.0 * 0.5**3
    assert named["student.blocks.0.mlp.fc1.weight"] == 2.0 * 0.5**2
    assert named["student.blocks.1.mlp.fc1.weight"] == 2.0 * 0.5
    assert named["student.norm.weight"] == 2.0
    assert named["branches.mim.head.proj.weight"] == 2.0


def test_the_decay_of_a_step_leaves_vectors_alone() -> None:
    objective = Objective(recipe("beit-micro"))
    optimizer = make_optimizer(
        objective, Optimization(lr=1.0, weight_decay={"start": 0.04, "end": 0.4}), objective.depth_of
    )
    before = {group["weight_decay"] for group in optimizer.param_groups}
    set_decay(optimizer, 0.2)
    assert sorted(before) == pytest.approx([0, 0.04])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.2}


@pytest.mark.parametrize(
    ("batch", "world", "micro", "expected"), [(64, 1, None, (64, 1)), (64, 2, 8, (8, 4)), (8, 8, 4, (1, 1))]
)
def test_a_global_batch_is_split_evenly(batch: int, world: int, micro: int | None, expected: tuple[int, int]) -> None:
    assert split(batch, world, micro) == expected


def test_an_uneven_split_says_what_to_choose() -> None:
    with pytest.raises(ValueError, match="choose a multiple of 3"):
        split(64, 3, None)
    with pytest.raises(ValueError, match="micro_batch 7 does not divide"):
        split(64, 1, 7)


def test_a_plan_counts_whole_batches() -> None:
    plan = Plan(26, 8, 3, 0, "float32", Optimization(lr=1e-3, warmup_epochs=1))
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 9)
    assert plan.rate(0) == 0
    assert plan.rate(3) == 1e-3
    assert math.isclose(plan.rate(6), 0.5e-3)
    with pytest.raises(ValueError, match="lower batch"):
        Plan(7, 8, 3, 0, "float32", Optimization(lr=1e-3))
