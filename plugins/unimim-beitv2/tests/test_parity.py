"""BEiT v2 and its tokenizer against microsoft/unilm @ 768a3c8, beit2, from stored weights, images and masks.

UNIMIM_GOLDENS names another folder of files of the same form; every size is read from them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unimim import Batch, Geometry, View, plugins
from unimim.importers import Imported, Importer
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))


def goldens(kind: str) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob(f"{kind}*.npz"))]


def tokenizer(golden: Golden, prefix: str, sizes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The teacher that reads the stored tokenizer from a file, as the official code would have written it."""
    torch.save({"model": golden.under(prefix), "epoch": 1}, folder / "vqkd.pth")
    fields = {
        "dim": "embed_dim",
        "depth": "depth",
        "num_heads": "num_heads",
        "num_codes": "n_embed",
        "code_dim": "code_dim",
    }
    known = {ours: sizes[official] for ours, official in fields.items()}
    return {"name": "vqkd", "checkpoint": str(folder / "vqkd.pth"), "patch_size": golden.config["patch_size"], **known}


def overrides(golden: Golden) -> list[str]:
    config = golden.config
    return [
        f"student.num_heads={config['num_heads']}",
        f"student.eps={config['norm_eps']}",
        f"student.drop_path={config['drop_path_rate']}",
        f"mask.count={config['num_mask_patches']}",
        f"mask.min_block={config['min_mask_patches_per_block']}",
        *([f"head.early={config['early_layers'] - 1}"] if config["cls_pt"] else []),
        *golden.unnormalized("student"),
    ]


def read(golden: Golden, state: dict[str, Tensor], *more: str) -> Imported:
    importer: Importer = plugins()["importers"]["beitv2"]()
    return importer.read(state, [*overrides(golden), *more])


def prepared(path: Path, folder: Path) -> tuple[Golden, Imported, Any, Batch]:
    golden = Golden(path)
    teacher = tokenizer(golden, "tokenizer_state/", golden.config["tokenizer"], folder)
    found = read(golden, golden.under("state/"), f"teacher={teacher}")
    objective, batch = found.objective(), golden.batch()
    seen = dict.fromkeys(objective.renditions, golden["images_tokenizer"])
    view = replace(batch.views["main"], renditions=seen)
    return golden, found, objective, replace(batch, views={"main": view})


def queried(x: Tensor, valid: Tensor | None) -> Tensor:
    return x.flatten(0, 1) if valid is None else x[valid]


@pytest.mark.parametrize("path", goldens("beit2"))
def test_ids_of_the_tokenizer(path: Path, tmp_path: Path) -> None:
    golden, _, objective, batch = prepared(path, tmp_path)
    teacher = objective.teachers["mim"]
    assert_close(teacher.features(batch.views["main"]), golden["tokenizer_features"], rtol=0, atol=1e-5)
    assert teacher(batch.views["main"]).tokens.equal(golden["token_ids"])


@pytest.mark.parametrize("path", goldens("beit2"))
def test_losses_ids_and_both_predictions(path: Path, tmp_path: Path) -> None:
    golden, _, objective, batch = prepared(path, tmp_path)
    (step,) = objective.predictions(batch)["mim"]
    valid = step.query.valid
    assert queried(step.target, valid).equal(golden["target"])
    for pred, kind, loss in zip(step.preds, ("pred", "pred_cls_pt"), ("loss_1", "loss_2"), strict=False):
        assert_close(queried(pred, valid), golden[kind], rtol=0, atol=1e-4)
        distances = queried(objective.terms["mim"].distances(pred, step.target, valid), valid)
        assert distances.mean().item() == pytest.approx(golden[loss].item(), rel=1e-5)
    assert len(step.preds) == 1 + golden.config["cls_pt"]
    assert objective(batch)["loss"].item() == pytest.approx(golden["loss"].item(), rel=1e-5)


@pytest.mark.parametrize("path", goldens("beit2"))
def test_encoded_tokens_and_the_branch(path: Path, tmp_path: Path) -> None:
    golden, _, objective, batch = prepared(path, tmp_path)
    view, (mask,) = batch.views["main"], batch.masks["main"]
    encoded = objective.student(view, mask, objective.taps)
    assert_close(torch.cat([encoded.prefix, encoded.tokens], 1), golden["encoded"], rtol=0, atol=1e-4)
    if golden.config["cls_pt"]:
        branch = objective.terms["mim"].head.aggregate(encoded)
        branch = torch.cat([branch.prefix, branch.tokens], 1)
        assert_close(branch, golden["cls_pt_encoded_prenorm"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("path", goldens("beit2"))
def test_gradients(path: Path, tmp_path: Path) -> None:
    golden, found, objective, batch = prepared(path, tmp_path)
    objective(batch)["loss"].backward()
    check_gradients(objective, found.loaded, golden.under("grad/"))


def apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network with a position table, a norm and a head for each of those that share one."""
    own = {name: tensor for name, tensor in state.items() if not name.startswith("rel_pos_bias.")}
    for part in ("relative_position_bias_table", "relative_position_index"):
        blocks = [name.removesuffix(".norm1.bias") for name in state if name.endswith(".norm1.bias")]
        if f"rel_pos_bias.{part}" in state:
            own |= {f"{block}.attn.{part}": state[f"rel_pos_bias.{part}"].clone() for block in blocks}
    for kind in ("weight", "bias") if "cls_pt_layers.0.norm1.bias" in state else ():
        own.setdefault(f"cls_pt_norm.{kind}", state[f"norm.{kind}"].clone())
        own.setdefault(f"cls_pt_lm_head.{kind}", state[f"lm_head.{kind}"].clone())
    return own


@pytest.mark.parametrize("path", goldens("beit2"))
def test_a_network_that_shares_nothing_but_holds_the_same_numbers_gives_the_same(path: Path, tmp_path: Path) -> None:
    golden, together, objective, batch = prepared(path, tmp_path)
    state = apart(golden.under("state/"))
    teacher = together.recipe.data()["terms"]["mim"]["teacher"]
    found = read(golden, state, f"teacher={teacher}")
    separate = found.objective()
    assert {*found.loaded.values(), *found.ignored} == {*state}
    losses = [module(batch)["loss"] for module in (objective, separate)]
    assert losses[1].item() == pytest.approx(golden["loss"].item(), rel=1e-5)
    for loss in losses:
        loss.backward()
    ours = {module: {name: p.grad for name, p in module.named_parameters()} for module in (objective, separate)}
    shared = "rel_pos_bias.relative_position_bias_table"
    if f"grad/{shared}" in golden:
        tables = [name for name, official in found.loaded.items() if official.endswith("bias_table")]
        total = torch.stack([ours[separate][name] for name in tables]).sum(0)
        assert (total - golden[f"grad/{shared}"]).abs().max() <= 1e-4 * golden[f"grad/{shared}"].abs().max()
    weights = [name for name in ("proj", "branch") if f"branches.mim.head.{name}.weight" in ours[separate]]
    parts = [ours[separate][f"branches.mim.head.{name}.weight"] for name in weights]
    if golden.config.get("shared_lm_head") and "grad/lm_head.weight" in golden:
        stored = golden["grad/lm_head.weight"]
        assert (torch.stack(parts).sum(0) - stored).abs().max() <= 1e-4 * stored.abs().max()


@pytest.mark.parametrize("path", goldens("vqkd"))
def test_ids_of_a_tokenizer_in_training(path: Path, tmp_path: Path) -> None:
    """Its file also holds the CLIP it learns from; its ids are those before the codes move."""
    golden = Golden(path)
    config = tokenizer(golden, "state/", golden.config, tmp_path)
    side = golden.config["img_size"] // golden.config["patch_size"]
    vqkd = plugins()["teachers"]["vqkd"].Config.model_validate(config).build(Geometry((96, 96), (side, side), 16))
    view = View(torch.zeros(1), {vqkd.rendition: golden["images"]})
    assert_close(vqkd.features(view), golden["encoded"], rtol=0, atol=1e-5)
    assert vqkd(view).tokens.flatten().equal(golden["token_ids"].flatten())
    with torch.autocast("cpu", torch.bfloat16):
        assert vqkd(view).tokens.flatten().equal(golden["token_ids"].flatten())
