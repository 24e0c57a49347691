"""Parameter-free pieces against what the official functions returned."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from unimim import Objective, TargetSpec, load
from unimim.address import rng
from unimim.engine.optim import make_optimizer, parameter_groups, set_rate
from unimim.importers.base import apply
from unimim.importers.vit import BEIT_ENCODER
from unimim.layers import patchify, unpatchify
from unimim.layers.positions import RelativePositionBias, relative_index, sincos_2d
from unimim.losses import L2, Cosine, InfoNCE, SmoothL1
from unimim.masks import Block, Random
from unimim.norms import Identity, Layer
from unimim.schedule import Optimization


def test_patches_and_their_norm(piece: Any) -> None:
    """MAE's patchify, per-patch normalization, and the loss over hidden patches with its gradient."""
    golden = piece("mae_patchnorm")
    images, patch = golden["in/images"], (int(golden["in/patch_size"]),) * 2
    grid = images.shape[-2] // patch[0], images.shape[-1] // patch[1]
    patches = patchify(images, patch)
    assert unpatchify(patches, grid, patch).equal(golden["unpatchified"])
    hidden = golden["mask_0.75"]
    norms = {"raw": Identity(Identity.Config()), "normed": Layer(Layer.Config(unbiased=True, eps=1e-6))}
    for name, norm in norms.items():
        target = norm(patches)
        assert_close(target, golden[f"target_{name}"], rtol=0, atol=1e-5)
        pred = golden["in/pred"].requires_grad_()
        loss = L2(L2.Config(), TargetSpec(target.shape[-1]))(pred, target)[hidden].mean()
        assert loss.item() == pytest.approx(golden[f"loss_{name}"].item(), rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, pred)
        assert_close(gradient, golden[f"grad_{name}/pred"], rtol=0, atol=1e-8)


def test_random_masks_keep_the_official_count(piece: Any) -> None:
    """The least noise stays visible: int(N (1 - ratio)) patches."""
    golden = piece("mae_patchnorm")
    grid = tuple(size // int(golden["in/patch_size"]) for size in golden["in/images"].shape[-2:])
    masks = golden.under("mask_")
    assert masks
    for ratio, hidden in masks.items():
        num_hidden = Random.Config(ratio=float(ratio)).num_hidden(grid)
        assert hidden.sum(1).unique().tolist() == [num_hidden]


def test_sincos_positions(piece: Any) -> None:
    """MAE's table has the column first; SIM's and CAE's the row. CAE's is computed in float32, MAE's and SIM's in float64."""
    golden = piece("pos_embeds")
    seen = set()
    for name in golden:
        found = re.fullmatch(r"(mae|sim|cae_mocov3)/d(\d+)_g(\d+)(_cls)?", name)
        if found is None:
            continue
        kind, dim, side, has_class = found.groups()
        seen.add(kind)
        table = golden[name].view(-1, int(dim))
        if has_class:
            assert not table[0].any()
            table = table[1:]
        ours = sincos_2d((int(side), int(side)), int(dim), "column" if kind == "mae" else "row")
        assert_close(ours, table, rtol=0, atol=1e-6)
    assert seen == {"mae", "sim", "cae_mocov3"}


def test_relative_position_index(piece: Any) -> None:
    golden = piece("rel_pos_index")
    for height, width in golden["in/windows"].tolist():
        assert relative_index((height, width), 1).equal(golden[f"beit/{height}x{width}"].long())
        table = RelativePositionBias((height, width), 1, num_heads=1).table
        assert len(table) == int(golden[f"beit_num_distance/{height}x{width}"])


def agreement(masks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Share of horizontally and vertically adjacent pairs of patches that are both hidden or both visible; (draws,)."""
    pairs = [masks[:, 1:] == masks[:, :-1], masks[:, :, 1:] == masks[:, :, :-1]]
    shares: np.ndarray[Any, Any] = np.concatenate([pair.reshape(len(masks), -1) for pair in pairs], 1).mean(1)
    return shares


def deviation_error(x: np.ndarray[Any, Any]) -> float:
    """Standard error of the standard deviation of a sample, whatever its distribution."""
    fourth = ((x - x.mean()) ** 4).mean()
    return float(np.sqrt(max(fourth - x.var() ** 2, 0) / len(x)) / (2 * x.std())) if x.std() else 0.0


@pytest.mark.parametrize(
    "name", ["beit_75", "beit_40pct_78", "beit_75_min4", "data2vec_120", "beit2_75", "beit2_40pct_78"]
)
def test_block_masks_have_the_official_distribution(piece: Any, name: str) -> None:
    """Counts, where masks fall and how compact they are, from as many draws as the official generator made.

    Both sides are samples of n draws, so the difference of two means has a standard error of sqrt(2 / n) deviations.
    Everything must lie within 5 of them (5.5 for the largest of all positions): a true sampler fails once in a million.
    """
    golden = piece("mask_generators")
    stats, counts = golden.json("stats")[name], golden[f"{name}/counts"].double().numpy()
    (side, budget), draws = stats["config"]["args"], len(counts)
    min_block = stats["config"]["kwargs"].get("min_num_patches", 4)
    config = Block.Config(count=budget, min_block=min_block, exact=name.startswith("beit2"))
    sampler, generator = config.build(), rng(0)
    masks = np.concatenate([sampler.sample((side, side), generator) for _ in range(draws)]).reshape(-1, side, side)
    ours, error = masks.sum((1, 2)).astype(float), np.sqrt(2 / draws)
    assert abs(ours.mean() - stats["count_mean"]) <= 5 * error * ours.std()
    assert abs(ours.std() - stats["count_std"]) <= 5 * np.sqrt(2) * deviation_error(ours)
    assert ours.max() == stats["count_max"] == budget
    # Shortfalls thin out by half a patch or faster, so two minima differ by 8 patches once in hundreds of files.
    assert abs(ours.min() - stats["count_min"]) <= 8 * (ours.std() > 0)
    frequency = golden[f"{name}/freq"].double().numpy().reshape(side, side)
    pooled = (masks.mean(0) + frequency) / 2
    z = (masks.mean(0) - frequency) / (error * np.sqrt(pooled * (1 - pooled)))
    assert np.abs(z).max() <= 5.5
    assert abs(agreement(masks).mean() - stats["neighbour_agreement"]) <= 5 * error * agreement(masks).std()


def test_smooth_l1(piece: Any) -> None:
    golden = piece("regression_losses")
    for number, beta in enumerate(golden["in/beta"].tolist()):
        pred, target = golden["in/pred"].requires_grad_(), golden["in/target"]
        loss = SmoothL1(SmoothL1.Config(beta=beta), TargetSpec(target.shape[-1]))(pred[None], target[None]).mean()
        assert loss.item() == pytest.approx(golden[f"smooth_l1/{number}"].item(), rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, pred)
        assert_close(gradient, golden[f"smooth_l1_grad/{number}"], rtol=0, atol=1e-8)


@pytest.mark.parametrize(("name", "factor"), [("vqkd", 1), ("milan", 2)])
def test_cosine(piece: Any, name: str, factor: int) -> None:
    """VQ-KD's loss is 1 - cos, as ours; MILAN's is 2 - 2 cos, twice ours."""
    golden = piece("regression_losses")
    pred, target = golden["in/pred"].requires_grad_(), golden["in/target"]
    loss = factor * Cosine(Cosine.Config(), TargetSpec(target.shape[-1]))(pred[None], target[None]).mean()
    assert loss.item() == pytest.approx(golden[f"{name}_cosine"].item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, pred)
    assert_close(gradient, golden[f"{name}_cosine_grad"], rtol=0, atol=1e-8)


def test_beit_rates(piece: Any) -> None:
    """BEiT's table holds a value a step; its warm-up reaches the peak on its last step."""
    golden = piece("lr_schedules")
    cases = {name: case for name, case in golden.json("meta").items() if name.startswith("beit")}
    assert cases
    for name, case in cases.items():
        per_epoch = case["niter_per_ep"]
        warmup = case["warmup_steps"] / per_epoch if "warmup_steps" in case else case["warmup_epochs"]
        policy = Optimization(lr=case["base"], min_lr=case["final"], warmup_epochs=warmup, warmup_includes_peak=True)
        total = case["epochs"] * per_epoch
        ours = [policy.rate(step, total, per_epoch, 256) for step in range(total)]
        assert ours == pytest.approx(golden[name].tolist(), abs=1e-12)


def test_mae_rates(piece: Any) -> None:
    """MAE's rate at fractional epochs, and in parameter groups that scale it."""
    golden = piece("lr_schedules")
    case = golden.json("meta")["mae"]
    policy = Optimization(lr=case["lr"], min_lr=case["min_lr"], warmup_epochs=case["warmup_epochs"])
    rates = [policy.rate(epoch, case["epochs"], 1, 256) for epoch in golden["mae_epoch"].tolist()]
    assert rates == pytest.approx(golden["mae_lr"].tolist(), abs=1e-12)
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "rate_scale": scale} for scale in (0.5, 1.0)]
    optimizer = torch.optim.AdamW(groups)
    for rate, scaled in zip(rates, golden["mae_group_lr_scale0.5_and_none"].tolist(), strict=True):
        set_rate(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(scaled, abs=1e-12)


@pytest.mark.parametrize("method", ["beit", "mae"])
def test_layer_decay(piece: Any, method: str) -> None:
    """Rate scale and weight decay of every parameter of the official fine-tuning models, by official name."""
    golden = piece("layer_decay")
    decay, depth = golden["in/decay"].item(), int(golden["in/depth"])
    policy = [
        f"optimization.layer_decay={decay}",
        f"optimization.weight_decay={golden['in/weight_decay'].item()}",
        "optimization.no_decay=[pos_embed, prefix]",
    ]
    beit = ["student.relative_positions=per_block", "student.layer_scale=0.1", "student.qkv_bias=qv"]
    student = [f"student.depth={depth}", "student.dim=8", "student.num_heads=1", "student.positions=learned"]
    recipe = load("data2vec-micro", [*student, *policy, *(beit if method == "beit" else []), "teacher.layers=[0]"])
    objective = Objective(recipe)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    groups = parameter_groups(objective, recipe.optimization, objective.depth_of)
    ours = {names[id(p)]: (group["rate_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    official = golden.json(f"{method}_groups")
    renamed = {name: apply(BEIT_ENCODER, name) for name in official}
    matched = {ours_name: official[name] for name, ours_name in renamed.items() if ours_name}
    for name, value in matched.items():
        assert ours[name] == pytest.approx((value["lr_scale"], value["weight_decay"]), rel=1e-12), name
    ends = {name: value["lr_scale"] for name, value in official.items() if name.startswith(("head", "fc_norm"))}
    assert set(ends.values()) == {1.0}
    assert ours["student.norm.weight"][0] == ours["branches.mim.head.proj.weight"][0] == 1.0
    scales = {
        group["rate_scale"] for group in make_optimizer(objective, recipe.optimization, objective.depth_of).param_groups
    }
    assert sorted(scales) == pytest.approx(golden[f"{method}_scales"].tolist(), rel=1e-12)


def test_info_nce_within_an_image_and_across_images(piece: Any) -> None:
    """ConMIM's loss over the patches of an image at its temperatures; ExtreMA's over images, which it multiplies by 2 tau."""
    golden = piece("infonce")
    hidden = golden["in/mask"].bool()
    for case, temperature in enumerate(golden["in/temp"].tolist()):
        pred, keys = golden["in/conmim_student"].requires_grad_(), golden["in/conmim_teacher"]
        loss = InfoNCE(InfoNCE.Config(temperature=temperature), TargetSpec(keys.shape[-1]))
        value = loss(pred, keys, keys=keys)[hidden].mean()
        assert value.item() == pytest.approx(golden[f"conmim_loss_t{case}"].item(), rel=1e-6)
        (gradient,) = torch.autograd.grad(value, pred)
        assert_close(gradient, golden[f"conmim_grad_t{case}"], rtol=0, atol=1e-7)
    temperature = float(golden["in/extrema_T"])
    loss = InfoNCE(InfoNCE.Config(temperature=temperature, negatives="world"), TargetSpec(golden["in/k"].shape[-1]))
    pred = golden["in/q"].unsqueeze(1).requires_grad_()
    value = 2 * temperature * loss(pred, golden["in/k"].unsqueeze(1)).mean()
    assert value.item() == pytest.approx(golden["extrema_infonce"].item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, pred)
    assert_close(gradient.squeeze(1), golden["extrema_infonce_grad"], rtol=0, atol=1e-7)
