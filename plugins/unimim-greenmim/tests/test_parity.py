"""GreenMIM against LayneH/GreenMIM @ b981012, through the importers, from stored images, masks and noise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from unimim_greenmim.importer import GreenMIM, GreenMIMv1

from unimim import Objective
from unimim.importers import Imported, Importer
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))
FILES = sorted(FOLDER.glob("greenmim*.npz"))
MERGE = ".downsample."


@pytest.fixture(params=FILES or [FOLDER / "greenmim.npz"], ids=lambda path: path.stem)
def golden(request: Any) -> Golden:
    return Golden(request.param)


def imported(golden: Any, legacy: bool = True, importer: Importer | None = None) -> Imported:
    """legacy: the official order of visible tokens; otherwise each at its own position, as the recipe has it."""
    config = golden.config
    normed = {"name": "layer", "unbiased": True, "eps": 1e-6} if config["norm_pix_loss"] else "identity"
    decoder = {
        "name": "decoder",
        "dim": config["decoder_embed_dim"],
        "depth": config["decoder_depth"],
        "num_heads": config["decoder_num_heads"],
        "mlp_ratio": config["mlp_ratio"],
        "eps": config["norm_eps"],
    }
    overrides = [
        f"student.eps={config['norm_eps']}",
        f"head={ {'name': 'greenmim_decoder', 'decoder': decoder} if legacy else decoder }",
        f"mask.ratio={config['mask_ratio']}",
        f"norm={normed}",
    ]
    given = [*overrides, *golden.unnormalized("student", "teacher")]
    return (importer or GreenMIM()).read(golden.under("state/"), given)


def noise_order(golden: Any) -> Tensor:
    """s (1, L): the j-th visible token in raster order goes where the j-th smallest noise is."""
    num_visible = int((~golden["mask"][0]).sum())
    return golden["noise"].argsort(1)[:, :num_visible].argsort(1).argsort(1)


def objective_of(found: Imported, golden: Any) -> Any:
    """The objective, with the stored noise in place of our order."""
    objective: Any = found.objective()
    order = noise_order(golden)
    objective.terms["mim"].head.order = lambda index: order.expand(len(index), -1)
    return objective


def test_loss_targets_and_predictions(golden: Golden) -> None:
    objective = objective_of(imported(golden), golden)
    (step,) = objective.predictions(golden.batch())["mim"]
    assert_close(step.target.flatten(0, 1), golden["target"], rtol=0, atol=1e-4)
    assert_close(step.preds[0].flatten(0, 1), golden["pred"], rtol=0, atol=1e-4)
    assert objective(golden.batch())["loss"].item() == pytest.approx(float(golden["loss"]), rel=1e-5)


@pytest.mark.parametrize("legacy", [True, False])
def test_encoded_tokens(golden: Any, legacy: bool) -> None:
    """In raster order, whatever the decoder makes of them; official masks are one for the batch, ours each their own."""
    batch: Any = golden.batch()
    student = imported(golden, legacy).objective().student
    assert_close(student(batch.views["main"], batch.masks["main"][0]).tokens, golden["encoded"], rtol=0, atol=1e-4)


def test_gradients(golden: Golden) -> None:
    found = imported(golden)
    objective = objective_of(found, golden)
    objective(golden.batch())["loss"].backward()
    check_gradients(objective, found.loaded, golden.under("grad/"))


def test_the_official_mask_is_that_of_the_recipe(golden: Any) -> None:
    found, noise = imported(golden), golden["noise"]
    num_hidden = found.recipe.masks["main"].num_hidden(found.recipe.student.geometry.grid)
    hidden = noise.argsort(1).argsort(1) >= noise.shape[1] - num_hidden
    assert hidden.expand_as(golden["mask"]).equal(golden["mask"])


def test_the_order_is_a_deviation_of_known_size(golden: Golden) -> None:
    """docs/numerics.md: at these random weights the right order changes the loss by less than a percent."""
    fixed: Objective = imported(golden, legacy=False).objective()
    change = fixed(golden.batch())["loss"].item() / float(golden["loss"]) - 1
    assert 1e-5 < abs(change) < 0.01


def test_both_heads_load_the_same_tensors(golden: Golden) -> None:
    old, new = imported(golden), imported(golden, legacy=False)
    assert {*old.loaded.values()} == {*new.loaded.values()}
    assert not old.fresh
    assert "decoder_pos_embed" in old.ignored
    assert "branches.mim.head.decoder.proj.weight" in old.state
    assert "branches.mim.head.proj.weight" in new.state


def test_files_of_the_first_release_are_turned_to_the_order_of_swin(golden: Any) -> None:
    """A file written row first gives the golden's tokens with greenmim-v1, and others with greenmim."""
    state = golden.under("state/")
    for name in (name for name in state if MERGE in name):
        cut = state[name].unflatten(-1, (2, 2, -1))
        state[name] = cut.transpose(-3, -2).flatten(-3).contiguous()
    written = Golden.__new__(Golden)
    written.arrays = golden.arrays | {f"state/{name}": tensor.numpy() for name, tensor in state.items()}
    batch: Any = golden.batch()
    for importer, same in ((GreenMIMv1(), True), (GreenMIM(), False)):
        student = imported(written, importer=importer).objective().student
        tokens = student(batch.views["main"], batch.masks["main"][0]).tokens
        assert torch.allclose(tokens, golden["encoded"], rtol=0, atol=1e-4) == same
