"""BEiT against microsoft/unilm @ 768a3c8 and openai/DALL-E @ 5be4b23, through the importer, from stored images and masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unimim import Batch, Tap
from unimim.importers.base import Imported
from unimim.importers.beit import BEiT
from unimim.testing import check_gradients


def imported(golden: Any) -> Imported:
    config = golden.config
    overrides = [
        f"student.eps={config['norm_eps']}",
        f"student.num_heads={config['num_heads']}",
        "student.drop_path=0",
        f"mask.count={config['num_mask_patches']}",
        f"mask.min_block={config['min_mask_patches_per_block']}",
        f"teacher.num_hidden={config['dvae_n_hid']}",
        f"teacher.blocks_per_group={config['dvae_n_blk_per_group']}",
    ]
    return BEiT().read(golden.under("state/"), [*overrides, *golden.unnormalized("student")])


def prepared(golden: Any) -> tuple[Imported, Any, Batch]:
    """The objective with the stored tokenizer, and the batch with the tokenizer's pixels, whose map is undone."""
    found = imported(golden)
    objective: Any = found.objective()
    teacher, batch = objective.teachers["mim"], golden.batch()
    teacher.encoder.load_state_dict(golden.under("dvae_state/"))
    pixels = (golden["images_dvae"] - 0.1) / 0.8
    view = replace(batch.views["main"], renditions={teacher.rendition: pixels})
    return found, objective, replace(batch, views={"main": view})


def valid(index: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(index, dtype=torch.bool) if mask is None else mask


def test_tokens_of_the_tokenizer(beit_golden: Any) -> None:
    _, objective, batch = prepared(beit_golden)
    teacher = objective.teachers["mim"]
    assert_close(teacher.encoder(beit_golden["images_dvae"]), beit_golden["dvae_logits"], rtol=0, atol=1e-4)
    assert teacher(batch.views["main"]).tokens.equal(beit_golden["token_ids"])


def test_loss_targets_and_predictions(beit_golden: Any) -> None:
    _, objective, batch = prepared(beit_golden)
    (step,) = objective.predictions(batch)["mim"]
    real = valid(step.target, step.query.valid)
    logits, ids = step.preds[0][real], step.target[real]
    assert ids.equal(beit_golden["target"])
    assert_close(logits, beit_golden["pred"], rtol=0, atol=1e-4)
    assert (logits.argmax(1) == ids).float().mean().item() == pytest.approx(beit_golden["mlm_acc"].item())
    assert objective(batch)["loss"].item() == pytest.approx(beit_golden["loss"].item(), rel=1e-5)


def test_encoded_tokens(beit_golden: Any) -> None:
    _, objective, batch = prepared(beit_golden)
    view, (mask,) = batch.views["main"], batch.masks["main"]
    encoded = objective.student(view, mask, [Tap(0)])
    assert_close(objective.student.patch_embed(view.image), beit_golden["patch_embedded"], rtol=0, atol=1e-4)
    assert_close(encoded.taps[Tap(0)], beit_golden["block0"], rtol=0, atol=1e-4)
    assert_close(torch.cat([encoded.prefix, encoded.tokens], 1), beit_golden["encoded"], rtol=0, atol=1e-4)


def test_gradients(beit_golden: Any) -> None:
    found, objective, batch = prepared(beit_golden)
    objective(batch)["loss"].backward()
    check_gradients(objective, found.loaded, beit_golden.under("grad/"))
