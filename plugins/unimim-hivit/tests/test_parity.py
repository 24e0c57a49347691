"""HiViT against zhangxiaosong18/hivit @ 2718339, through the importer, from stored images and masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.testing import assert_close
from unimim_hivit.importer import HiViT

from unimim.importers import Imported
from unimim.layers import to_units
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))


@pytest.fixture(params=[path.stem for path in sorted(FOLDER.glob("hivit*.npz"))] or ["hivit"])
def golden(request: pytest.FixtureRequest) -> Golden:
    path = FOLDER / f"{request.param}.npz"
    if not path.is_file():
        pytest.fail(f"no file {path}; UNIMIM_GOLDENS names the folder")
    return Golden(path)


def imported(golden: Golden) -> Imported:
    config = golden.config
    normed = {"name": "layer", "unbiased": True, "eps": 1e-6} if config["norm_pix_loss"] else "identity"
    overrides = [
        f"student.num_heads={config['num_heads']}",
        f"student.eps={config['norm_eps']}",
        f"head.num_heads={config['decoder_num_heads']}",
        f"head.eps={config['norm_eps']}",
        f"mask.ratio={config['mask_ratio']}",
        f"norm={normed}",
    ]
    return HiViT().read(golden.under("state/"), [*overrides, *golden.unnormalized("student", "teacher")])


def raster(golden: Golden, kept: Tensor) -> Tensor:
    """Kept tokens (B, L, D) in the official shuffled order, as raster order."""
    order = golden["noise"].argsort(1)[:, : kept.shape[1]].argsort(1)
    return kept.gather(1, order.unsqueeze(-1).expand_as(kept))


def test_loss_targets_and_predictions(golden: Golden) -> None:
    objective = imported(golden).objective()
    (step,) = objective.predictions(golden.batch())["mim"]
    assert_close(step.target.flatten(0, 1), golden["target"], rtol=0, atol=1e-4)
    assert_close(step.preds[0].flatten(0, 1), golden["pred"], rtol=0, atol=1e-4)
    assert objective(golden.batch())["loss"].item() == pytest.approx(float(golden["loss"]), rel=1e-5)


def test_patch_embedding_and_encoded_tokens(golden: Golden) -> None:
    given = golden.batch()
    student: Any = imported(golden).objective().student
    view, (mask,) = given.views["main"], given.masks["main"]
    units = to_units(student.patch_embed(view.image).permute(0, 2, 3, 1), student.geometry.grid)
    assert_close(student.patch_norm(units), golden["patch_embedded"].flatten(2, 3), rtol=0, atol=1e-4)
    assert_close(student(view, mask).tokens, raster(golden, golden["encoded"]), rtol=0, atol=1e-4)


def test_gradients(golden: Golden) -> None:
    found = imported(golden)
    objective = found.objective()
    objective(golden.batch())["loss"].backward()
    check_gradients(objective, found.loaded, golden.under("grad/"))


def test_every_official_tensor_is_loaded_or_is_a_table_that_ours_equals(golden: Golden) -> None:
    found = imported(golden)
    assert {*found.ignored} == {"decoder_pos_embed", *(["relative_position_index"] if golden.config["rpe"] else [])}
    assert all("computed by unimim" in reason for reason in found.ignored.values())
    assert {*found.loaded.values(), *found.ignored} == {*golden.under("state/")}
    assert found.recipe.data()["student"]["relative_positions"] == ("per_block" if golden.config["rpe"] else "none")


def test_the_mask_is_the_noise_of_the_file(golden: Golden) -> None:
    """The official code keeps the int(N (1 - ratio)) patches of least noise; our sampler keeps as many."""
    recipe, noise = imported(golden).recipe, golden["noise"]
    num_hidden = recipe.masks["main"].num_hidden(recipe.student.geometry.grid)
    assert num_hidden is not None
    assert (noise.argsort(1).argsort(1) >= noise.shape[1] - num_hidden).equal(golden["mask"])


def test_the_position_table_is_trained_and_still_near_its_start(golden: Golden) -> None:
    """The official table is trainable by accident; the stored one was moved from the sin-cos code by noise of 0.1."""
    student = imported(golden).recipe.student.build()
    moved = golden["state/absolute_pos_embed"] - student.get_parameter("pos_embed").detach()
    assert student.get_parameter("pos_embed").requires_grad
    assert 0.05 < moved.std() < 0.15
