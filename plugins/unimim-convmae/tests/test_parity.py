"""ConvMAE against Alpha-VL/ConvMAE @ 4c97b4c, through the importer, from stored images and masks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from unimim_convmae.importer import ConvMAE

from unimim import Batch, Mask, Objective, Recipe, View
from unimim.importers import Imported
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))


@pytest.fixture(params=[path.stem for path in sorted(FOLDER.glob("convmae*.npz"))] or ["convmae"])
def golden(request: pytest.FixtureRequest) -> Golden:
    path = FOLDER / f"{request.param}.npz"
    if not path.is_file():
        pytest.fail(f"no file {path}; UNIMIM_GOLDENS names the folder")
    return Golden(path)


def imported(golden: Golden) -> Imported:
    config = golden.config
    normed = {"name": "layer", "unbiased": True, "eps": 1e-6} if config["norm_pix_loss"] else "identity"
    pixels = {"mean": config["pixel_mean"], "std": config["pixel_std"]}
    overrides = [
        f"student.num_heads={config['num_heads']}",
        f"student.eps={config['norm_eps']}",
        f"head.num_heads={config['decoder_num_heads']}",
        f"head.eps={config['norm_eps']}",
        f"mask.ratio={config['mask_ratio']}",
        f"norm={normed}",
        *(f"{part}.{key}={value}" for part in ("student", "teacher") for key, value in pixels.items()),
    ]
    return ConvMAE().read(golden.under("state/"), overrides)


def batch(golden: Golden) -> Batch:
    images = golden["images_u8"]
    return Batch({"main": View(images)}, {"main": (Mask.from_hidden(golden["mask"]),)}, torch.arange(len(images)))


def raster(golden: Golden, kept: Tensor) -> Tensor:
    """Kept tokens (B, L, D) in the official shuffled order, as raster order."""
    order = golden["noise"].argsort(1)[:, : kept.shape[1]].argsort(1)
    return kept.gather(1, order.unsqueeze(-1).expand_as(kept))


def test_loss_targets_and_predictions(golden: Golden) -> None:
    objective, positions = imported(golden).objective(), golden["pred_positions"]
    (step,) = objective.predictions(batch(golden))["mim"]
    stored = positions.shape[1]
    assert step.query.index is not None
    assert step.query.index[:, :stored].equal(positions)
    assert_close(step.target[:, :stored], golden["target"], rtol=0, atol=1e-4)
    assert_close(step.preds[0][:, :stored], golden["pred"], rtol=0, atol=1e-4)
    assert objective(batch(golden))["loss"].item() == pytest.approx(float(golden["loss"]), rel=1e-5)


def test_every_position_can_be_predicted(golden: Golden) -> None:
    found = imported(golden)
    data = found.recipe.data()
    data["terms"]["mim"]["where"] = "all"
    objective = Objective(Recipe.model_validate(data))
    objective.load_state_dict(found.objective().state_dict())
    (step,) = objective.predictions(batch(golden))["mim"]
    distances = (step.preds[0] - step.target).square().mean(-1)
    assert_close(distances, golden["loss_per_patch"], rtol=0, atol=1e-4)


def test_encoded_tokens(golden: Golden) -> None:
    given, student = batch(golden), imported(golden).objective().student
    tokens = student(given.views["main"], given.masks["main"][0]).tokens
    assert_close(tokens, raster(golden, golden["encoded"]), rtol=0, atol=1e-4)


def test_gradients(golden: Golden) -> None:
    found = imported(golden)
    objective = found.objective()
    objective(batch(golden))["loss"].backward()
    check_gradients(objective, found.loaded, ConvMAE().adapt(golden.under("grad/")))


def test_every_official_tensor_is_loaded_or_is_a_table_that_ours_equals(golden: Golden) -> None:
    found = imported(golden)
    assert {*found.ignored} == {"pos_embed", "decoder_pos_embed"}
    assert all("computed by unimim" in reason for reason in found.ignored.values())
    assert {*found.loaded.values(), *found.ignored} == {*golden.under("state/")}


def test_the_mask_is_the_noise_of_the_file(golden: Golden) -> None:
    """The official code keeps the int(N (1 - ratio)) patches of least noise; our sampler keeps as many."""
    recipe, noise = imported(golden).recipe, golden["noise"]
    num_hidden = recipe.masks["main"].num_hidden(recipe.student.geometry.grid)
    assert num_hidden is not None
    assert (noise.argsort(1).argsort(1) >= noise.shape[1] - num_hidden).equal(golden["mask"])
