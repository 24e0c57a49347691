"""SimMIM, with Swin and with ViT, against microsoft/SimMIM @ d3e29bc, through the importers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from unimim import Batch, Objective
from unimim.importers.base import Imported, Importer
from unimim.importers.simmim import SimMIM, SimMIMViT
from unimim.layers import unpatchify
from unimim.testing import check_gradients


def importer(golden: Any) -> Importer:
    return SimMIMViT() if golden.config["type"] == "vit" else SimMIM()


def imported(golden: Any) -> Imported:
    config, unit = golden.config, golden.config["mask_patch_size"] // golden.config["encoder_stride"]
    overrides = [f"mask.ratio={config['mask_ratio']}", f"mask.unit={unit}", "student.drop_path=0"]
    if config["type"] == "vit":
        overrides += [f"student.eps={config['norm_eps']}"]
    return importer(golden).read(golden.under("state/"), [*overrides, *golden.unnormalized("student", "teacher")])


def batch(golden: Any) -> Batch:
    """The stored mask is of the first stage's patches; ours is of the last tokens."""
    side, stride = golden.config["img_size"] // golden.config["patch_size"], golden.config["encoder_stride"]
    step = stride // golden.config["patch_size"]
    mask = golden["mask"].view(-1, side, side)
    last = mask[:, ::step, ::step]
    assert last.repeat_interleave(step, 1).repeat_interleave(step, 2).equal(mask)
    return golden.batch(last.flatten(1))


def everywhere(found: Imported) -> Objective:
    data = found.recipe.data()
    data["terms"]["mim"]["where"] = "all"
    objective = Objective(type(found.recipe).model_validate(data))
    objective.load_state_dict(found.objective().state_dict())
    return objective


def test_loss(simmim_golden: Any) -> None:
    loss = imported(simmim_golden).objective()(batch(simmim_golden))["loss"]
    assert loss.item() == pytest.approx(float(simmim_golden["loss"]), rel=1e-5)


def test_encoded_tokens(simmim_golden: Any) -> None:
    given: Any = batch(simmim_golden)
    objective: Any = imported(simmim_golden).objective()
    tokens = objective.student(given.views["main"], given.masks["main"][0]).tokens
    assert_close(tokens.mT.reshape(simmim_golden["encoded"].shape), simmim_golden["encoded"], rtol=0, atol=1e-4)


def reconstruction(golden: Any, what: str = "pred") -> float:
    """Largest difference of the prediction (or "target") of every patch, put back into an image as the official code does."""
    objective = everywhere(imported(golden))
    (step,) = objective.predictions(batch(golden))["mim"]
    geometry: Any = objective.student.geometry
    patches = step.preds[0] if what == "pred" else step.target
    return float((unpatchify(patches, geometry.grid, geometry.patch) - golden[what]).detach().abs().max())


def test_reconstruction_and_target(simmim_golden: Any) -> None:
    assert reconstruction(simmim_golden) < 1e-4
    assert reconstruction(simmim_golden, "target") < 1e-6


def test_gradients(simmim_golden: Any) -> None:
    found = imported(simmim_golden)
    objective = found.objective()
    objective(batch(simmim_golden))["loss"].backward()
    check_gradients(objective, found.loaded, importer(simmim_golden).adapt(simmim_golden.under("grad/")))


def test_the_official_denominator_changes_the_loss_by_less_than_float32_holds(simmim_golden: Any) -> None:
    """Official: the sum over hidden pixels / (their number + 1e-5) / 3; ours is their mean (docs/numerics.md)."""
    pixels = int(simmim_golden["pixel_mask"].sum())
    assert 1e-5 / (pixels + 1e-5) < torch.finfo(torch.float32).eps
