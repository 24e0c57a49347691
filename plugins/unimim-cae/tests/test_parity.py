"""CAE and CAE v2 against Atten4Vis/CAE @ a7fd162, through the importer, from stored images and masks.

UNIMIM_GOLDENS names another folder of such files; every size is read from them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from unimim_cae.importer import CAEImporter

from unimim import Batch, Geometry, Query, TargetSpec, load, plugins
from unimim.importers import Imported
from unimim.layers import sincos_2d
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))


def files(second: bool) -> list[str]:
    """Names of the stored steps of CAE, or of CAE v2."""
    names = [path.stem for path in sorted(FOLDER.glob("cae*.npz")) if path.stem.startswith("cae_v2") == second]
    return names or ["cae_v2" if second else "cae"]


def read(name: str) -> Golden:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.fail(f"no file {path}; UNIMIM_GOLDENS names the folder")
    return Golden(path)


@pytest.fixture(params=files(second=False))
def golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


@pytest.fixture(params=files(second=True))
def second(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


def imported(golden: Golden, *overrides: str, state: Mapping[str, Any] | None = None) -> Imported:
    config = golden.config
    sizes = [
        f"student.num_heads={config['num_heads']}",
        f"student.regressor_heads={config['decoder_num_heads']}",
        f"student.eps={config['norm_eps']}",
        "student.drop_path=0",
        f"terms.mim.head.num_heads={config['decoder_num_heads']}",
        f"terms.mim.head.eps={config['norm_eps']}",
        "terms.mim.head.drop_path=0",
        f"terms.mim.teacher.num_hidden={config['dvae_n_hid']}",
        f"terms.mim.teacher.blocks_per_group={config['dvae_n_blk_per_group']}",
        f"terms.align.weight={config['align_loss_weight']}",
        f"mask.count={config['num_mask_patches']}",
        f"mask.min_block={config['min_mask_patches_per_block']}",
        *golden.unnormalized("student"),
    ]
    return CAEImporter().read(golden.under("state/") if state is None else state, [*sizes, *overrides])


def prepared(golden: Golden) -> tuple[Imported, Any, Batch]:
    """The objective with the stored tokenizer, and the batch with the tokenizer's pixels, whose map is undone."""
    found = imported(golden)
    objective: Any = found.objective()
    teacher, batch = objective.teachers["mim"], golden.batch()
    teacher.encoder.load_state_dict(golden.under("dvae_state/"))
    pixels = (golden["images_dvae"] - 0.1) / 0.8
    view = replace(batch.views["main"], renditions={teacher.rendition: pixels})
    return found, objective, replace(batch, views={"main": view})


def test_the_parts_of_the_loss(golden: Golden) -> None:
    _, objective, batch = prepared(golden)
    losses = objective(batch)
    weight = golden.config["align_loss_weight"]
    assert losses["mim"].item() == pytest.approx(golden["loss_main"].item(), rel=1e-5)
    assert weight * losses["align"].item() == pytest.approx(golden["loss_align"].item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(golden["loss"].item(), rel=1e-5)


def test_predictions_and_targets_of_both_terms(golden: Golden) -> None:
    _, objective, batch = prepared(golden)
    steps = objective.predictions(batch)
    (mim,), (align,) = steps["mim"], steps["align"]
    assert mim.dense.equal(golden["token_ids"])
    assert mim.target.flatten().equal(golden["target"])
    assert_close(mim.preds[0], golden["pred"], rtol=0, atol=1e-4)
    assert_close(align.preds[0], golden["latent_predict"], rtol=0, atol=1e-4)
    assert_close(align.target, golden["latent_target"], rtol=0, atol=1e-4)


def test_encoded_tokens(golden: Golden) -> None:
    _, objective, batch = prepared(golden)
    view, (mask,) = batch.views["main"], batch.masks["main"]
    encoded = objective.student.encode(view, mask.visible_index)
    if encoded.shape[-1] != golden["encoded"].shape[-1]:
        encoded = objective.student.project(encoded)
    assert_close(encoded, golden["encoded"], rtol=0, atol=1e-4)


def test_gradients(golden: Golden) -> None:
    found, objective, batch = prepared(golden)
    objective(batch)["loss"].backward()
    check_gradients(objective, found.loaded, golden.under("grad/"))


def test_every_tensor_is_accounted_for(golden: Golden) -> None:
    state, found = golden.under("state/"), imported(golden)
    assert {*found.loaded.values(), *found.ignored} == {*state}
    tables = {name: reason for name, reason in found.ignored.items() if not name.startswith("alignment_encoder.")}
    assert {*tables} == {"encoder.pos_embed", "rd_pos_embed"}
    assert all(reason.startswith("fixed table, computed by unimim") for reason in tables.values())
    student: Any = found.recipe.student
    config = golden.config
    for ours, official in {
        "dim": "embed_dim",
        "depth": "depth",
        "regressor_dim": "decoder_embed_dim",
        "regressor_depth": "regressor_depth",
        "mlp_ratio": "mlp_ratio",
        "patch_size": "patch_size",
        "image_size": "img_size",
    }.items():
        assert getattr(student, ours) == config[official]
    assert found.recipe.terms["mim"].head.depth == config["decoder_depth"]


def test_without_the_decoder_the_head_starts_afresh_at_the_recipes_size(golden: Golden) -> None:
    state = {name: tensor for name, tensor in golden.under("state/").items() if not name.startswith("decoder.")}
    config = golden.config
    sizes = [f"student.num_heads={config['num_heads']}", f"student.regressor_heads={config['decoder_num_heads']}"]
    sizes += [f"terms.mim.head.num_heads={config['decoder_num_heads']}", f"mask.count={config['num_mask_patches']}"]
    sizes += [f"mask.min_block={config['min_mask_patches_per_block']}"]
    with pytest.raises(ValueError, match="no tensors of the head"):
        CAEImporter().read(state, sizes)
    found = CAEImporter().read(state, sizes, allow_missing_head=True)
    assert all(name.startswith("branches.mim.head.") for name in found.fresh)
    assert found.recipe.terms["mim"].head.depth == load("cae").terms["mim"].head.depth


def test_sizes_that_tensors_do_not_tell_are_asked_for_by_full_keys(golden: Golden) -> None:
    with pytest.raises(ValueError, match=r"give student\.num_heads=\.\.\. .*terms\.mim\.head\.num_heads=\.\.\."):
        CAEImporter().read(golden.under("state/"))


def test_an_alignment_encoder_that_lags_is_refused(golden: Golden) -> None:
    state = golden.under("state/")
    state["alignment_encoder.norm.bias"] = state["alignment_encoder.norm.bias"] + 1e-3
    with pytest.raises(ValueError, match=r"alignment_encoder\.norm\.bias differs"):
        imported(golden, state=state)


def test_column_first_positions_are_refused(golden: Golden) -> None:
    """What MAE's table would do: the student would see other positions."""
    state = golden.under("state/")
    table = state["encoder.pos_embed"].clone()
    side = golden.config["img_size"] // golden.config["patch_size"]
    table[0, 1:] = sincos_2d((side, side), table.shape[-1], "column")
    with pytest.raises(ValueError, match="position code"):
        imported(golden, state=state | {"encoder.pos_embed": table, "alignment_encoder.pos_embed": table})


def test_a_width_that_heads_do_not_divide_is_refused(golden: Golden) -> None:
    state = golden.under("state/")
    name = "regresser.regressor_blocks.0.cross_attn.q.weight"
    with pytest.raises(ValueError, match="heads do not divide"):
        imported(golden, state=state | {name: state[name][:-1]})


def test_the_second_version(second: Golden) -> None:
    """Class token, visible and predicted patches against normalized features, by cosine, without decoder blocks."""
    config = second.config
    unused = "regresser.norm."  # owned by the official model, read by none of its second version
    state = {name: tensor for name, tensor in second.under("state/").items() if not name.startswith(unused)}
    found = imported(second, "student.where=all", state=state)
    objective: Any = found.objective()
    batch = second.batch()
    view, (mask,) = batch.views["main"], batch.masks["main"]
    assert_close(objective.student.encode(view, mask.visible_index), second["encoded"], rtol=0, atol=1e-4)
    encoded = objective.student(view, mask)
    num_visible = mask.visible_index.shape[1]
    head: Any = objective.terms["mim"].head
    assert_close(encoded.tokens[:, num_visible:], second["latent_predict"], rtol=0, atol=1e-4)
    pred = head(encoded, Query(encoded.index, include_class=True))
    assert_close(pred, second["pred"], rtol=0, atol=1e-4)
    features = second["clip_features"]
    ordered = torch.cat([features[:, :1], features[:, 1:].take_along_dim(encoded.index.unsqueeze(-1), 1)], 1)
    target = plugins()["norms"]["l2"].Config().build()(ordered)
    assert_close(target, second["target"], rtol=0, atol=1e-6)
    cosine = plugins()["losses"]["cosine"].Config().build(TargetSpec(target.shape[-1]))
    loss = config["latent_alignment_loss_weight"] * cosine(pred, target).mean()
    assert loss.item() == pytest.approx(second["loss"].item(), rel=1e-5)
    loss.backward()
    check_gradients(objective, found.loaded, second.under("grad/"))


def test_positions_are_row_first() -> None:
    tables = read("piece_pos_embeds")
    sizes = {name: table for name, table in tables.under("cae_mocov3/").items() if table.ndim == 3}
    assert sizes
    for name, table in sizes.items():
        dim, side = (int(part[1:]) for part in name.split("_")[:2])
        student: Any = plugins()["students"]["cae"].Config(
            image_size=4 * side, patch_size=4, dim=dim, depth=1, num_heads=2, regressor_dim=dim, regressor_heads=2
        )
        built = student.build()
        assert student.geometry == Geometry((4 * side, 4 * side), (side, side), dim, 3, dim)
        for own in (built.pos_embed, built.regressor_positions):
            assert_close(own, table[0, 1:], rtol=0, atol=1e-5)
        assert not table[0, 0].any()


def test_masks_are_as_many_and_nearly_as_compact_as_official_ones() -> None:
    """Official code retries until the count is met; ours fills what ten failures leave with single patches."""
    golden = read("piece_mask_generators")
    stats = golden.json("stats")["cae_98"]
    (side, budget), counts = stats["config"]["args"], golden["cae_98/counts"]
    changes = [f"mask.count={budget}", f"mask.min_block={stats['config']['kwargs']['min_num_patches']}"]
    sampler = load("cae", changes).masks["main"].build()
    generator = np.random.default_rng(0)
    masks = np.concatenate([sampler.sample((side, side), generator) for _ in counts]).reshape(-1, side, side)
    assert {*masks.sum((1, 2)).tolist()} == {*counts.tolist()} == {budget}
    alike = (masks[:, 1:] == masks[:, :-1]).sum((1, 2)) + (masks[:, :, 1:] == masks[:, :, :-1]).sum((1, 2))
    assert alike.mean() / (2 * side * (side - 1)) == pytest.approx(stats["neighbour_agreement"], abs=0.005)
    frequency = golden["cae_98/freq"].numpy().reshape(side, side)
    error = np.sqrt(2 / len(counts) * frequency * (1 - frequency))
    assert (np.abs(masks.mean(0) - frequency) <= 5.5 * error).all()
