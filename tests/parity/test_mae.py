"""MAE against facebookresearch/mae @ efb2a80, through the importer, from stored images and masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unimim import Objective
from unimim.importers.base import Imported
from unimim.importers.mae import MAE
from unimim.testing import check_gradients


def imported(golden: Any) -> Imported:
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
    return MAE().read(golden.under("state/"), [*overrides, *golden.unnormalized("student", "teacher")])


def raster(golden: Any, kept: Tensor) -> Tensor:
    """Kept tokens (B, 1 + L, D) in MAE's shuffled order, as the class token and then raster order."""
    places = golden["ids_restore"].argsort(1)[:, : kept.shape[1] - 1]
    order = places.argsort(1)
    return torch.cat([kept[:, :1], kept[:, 1:].gather(1, order.unsqueeze(-1).expand(-1, -1, kept.shape[-1]))], 1)


def test_loss_targets_and_predictions(mae_golden: Any) -> None:
    batch = mae_golden.batch()
    objective: Any = imported(mae_golden).objective()
    (step,) = objective.predictions(batch)["mim"]
    assert_close(step.dense, mae_golden["target_all"], rtol=0, atol=1e-4)
    assert_close(step.target.flatten(0, 1), mae_golden["target"], rtol=0, atol=1e-4)
    assert_close(step.preds[0].flatten(0, 1), mae_golden["pred"], rtol=0, atol=1e-4)
    assert objective(batch)["loss"].item() == pytest.approx(float(mae_golden["loss"]), rel=1e-5)


def test_every_position_can_be_predicted(mae_golden: Any) -> None:
    found = imported(mae_golden)
    everywhere = found.recipe.data() | {"terms": {"mim": found.recipe.data()["terms"]["mim"] | {"where": "all"}}}
    objective = Objective(type(found.recipe).model_validate(everywhere))
    objective.load_state_dict(found.objective().state_dict())
    (step,) = objective.predictions(mae_golden.batch())["mim"]
    assert_close(step.preds[0], mae_golden["pred_all"], rtol=0, atol=1e-4)


def test_encoded_tokens(mae_golden: Any) -> None:
    batch = mae_golden.batch()
    objective: Any = imported(mae_golden).objective()
    view, (mask,) = batch.views["main"], batch.masks["main"]
    encoded = objective.student(view, mask)
    tokens = torch.cat([encoded.prefix, encoded.tokens], 1)
    assert_close(
        objective.student.patch_embed(batch.views["main"].image), mae_golden["patch_embedded"], rtol=0, atol=1e-4
    )
    assert_close(tokens, raster(mae_golden, mae_golden["encoded"]), rtol=0, atol=1e-4)
    embedded = objective.terms["mim"].head.embed(tokens)
    assert_close(embedded, raster(mae_golden, mae_golden["decoder_embedded"]), rtol=0, atol=1e-4)


def test_gradients(mae_golden: Any) -> None:
    found = imported(mae_golden)
    objective = found.objective()
    objective(mae_golden.batch())["loss"].backward()
    check_gradients(objective, found.loaded, mae_golden.under("grad/"))


def test_the_mask_is_the_noise_of_the_file(mae_golden: Any) -> None:
    """The official code keeps the int(N (1 - ratio)) patches of least noise; our sampler keeps as many."""
    found, noise = imported(mae_golden), mae_golden["noise"]
    num_hidden = found.recipe.masks["main"].num_hidden(found.recipe.student.geometry.grid)
    hidden = noise.argsort(1).argsort(1) >= noise.shape[1] - num_hidden
    assert hidden.equal(mae_golden["mask"])
