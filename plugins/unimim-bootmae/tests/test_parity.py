"""BootMAE against LightDXY/BootMAE @ d604b18, through the importer, from stored images and masks.

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
from unimim_bootmae.importer import BootMAE
from unimim_bootmae.mask import RolledBlock
from unimim_bootmae.recipes import momentum, ramp

from unimim import Batch, Progress, Query, Schedule
from unimim.importers import Imported
from unimim.layers import patchify, sincos_2d
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))


def read(name: str) -> Golden:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.fail(f"no file {path}; UNIMIM_GOLDENS names the folder")
    return Golden(path)


@pytest.fixture(params=[path.stem for path in sorted(FOLDER.glob("bootmae*.npz"))] or ["bootmae"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


def official(golden: Golden) -> dict[str, Any]:
    """As a file has it: the student, and the momentum teacher under model_ema."""
    teacher = {f"model_ema.{name}": tensor for name, tensor in golden.under("teacher_state/").items()}
    return golden.under("state/") | teacher


def heads(golden: Golden) -> list[str]:
    parts = ("student", "terms.pixels.head", "terms.features.head")
    return [f"{part}.num_heads={golden.config['num_heads']}" for part in parts]


def overrides(golden: Golden) -> list[str]:
    """Everything that the tensors do not tell, of a run of this many epochs."""
    config = golden.config
    num_tokens = golden["mask"].shape[1]
    epochs, dynamic, (early, last) = config["epochs"], config["model_ema_dynamic"], config["fea_list"]
    weight = {key: value * config["feature_weight"] for key, value in ramp(epochs).items() if key != "until"}
    mask = {
        "name": "rolled_block",
        "ratio": (config["mask_num"] - 0.5) / num_tokens,
        "blocks": (config["num_mask_patches"] + 0.5) / num_tokens,
        "min_block": config["min_mask_patches_per_block"],
        "max_block": config["max_mask_patches_per_block"],
        "weighted": config["weight_mask"],
    }
    return [
        *heads(golden),
        *golden.unnormalized("student", "terms.pixels.teacher"),
        *(f"{part}.eps={config['norm_eps']}" for part in ("student", "terms.pixels.head", "terms.features.head")),
        f"terms.pixels.head.inject={early}",
        f"terms.features.head.inject={last}",
        f"terms.features.teacher.decay={momentum(epochs, dynamic)}",
        f"terms.features.weight={weight | {'until': ramp(epochs)['until']}}",
        f"mask={mask}",
        f"epochs={epochs}",
    ]


def imported(golden: Golden, state: Mapping[str, Any] | None = None) -> Imported:
    return BootMAE().read(official(golden) if state is None else state, overrides(golden))


def prepared(golden: Golden) -> tuple[Imported, Any, Batch]:
    """The objective at the stored epoch, and the batch with the weights that the recipe's sampler gives its mask."""
    found, batch = imported(golden), golden.batch()
    (mask,) = batch.masks["main"]
    sampler, grid = found.recipe.masks["main"].build(), found.recipe.student.geometry.grid
    assert mask.hidden_index.shape[1] == sampler.config.num_hidden(grid) == golden.config["mask_num"]
    if sampler.config.weighs:
        mask = replace(mask, weight=torch.from_numpy(sampler.weight(mask.hidden.numpy(), grid)))
    objective = found.objective()
    objective.on_step_start(progress(golden))
    return found, objective, replace(batch, masks={"main": (mask,)})


def progress(golden: Golden) -> Progress:
    """The beginning of the stored epoch, of ten steps each."""
    return Progress(10 * golden.config["epoch"], 10 * golden.config["epochs"], 10)


def test_the_loss_and_both_terms(golden: Golden) -> None:
    _, objective, batch = prepared(golden)
    losses = objective(batch)
    assert losses["pixels"].item() == pytest.approx(golden["loss_pixel"].item(), rel=1e-5)
    assert losses["features"].item() == pytest.approx(golden["loss_feature"].item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(golden["loss"].item(), rel=1e-5)


def test_targets(golden: Golden) -> None:
    _, objective, batch = prepared(golden)
    steps, patch = objective.predictions(batch), objective.student.geometry.patch
    (pixels,), (features,) = steps["pixels"], steps["features"]
    assert_close(pixels.dense, patchify(golden["target"], patch), rtol=0, atol=1e-4)
    assert_close(features.dense, golden["target_feature"], rtol=0, atol=1e-4)
    taught = objective.teachers["features"](batch.views["main"]).tokens
    assert_close(taught, golden["teacher_feature"], rtol=0, atol=1e-4)


def test_predictions_at_every_patch_and_at_hidden_ones(golden: Golden) -> None:
    _, objective, batch = prepared(golden)
    (mask,) = batch.masks["main"]
    encoded = objective.student(batch.views["main"], mask, objective.taps)
    everywhere = Query(torch.arange(mask.hidden.shape[1]).expand(len(mask.hidden), -1))
    pixels = patchify(golden["pred"], objective.student.geometry.patch)
    for name, stored in {"pixels": pixels, "features": golden["pred_feature"]}.items():
        head = objective.terms[name].head
        assert_close(head(encoded, everywhere), stored, rtol=0, atol=1e-4)
        hidden = stored[mask.hidden].view(len(stored), -1, stored.shape[-1])
        (step,) = objective.predictions(batch)[name]
        assert_close(step.preds[0], hidden, rtol=0, atol=1e-4)


def test_encoded_tokens(golden: Golden) -> None:
    """Official visible tokens stand in the order of the draw, ours in that of the image."""
    _, objective, batch = prepared(golden)
    (mask,) = batch.masks["main"]
    encoded = objective.student(batch.views["main"], mask)
    order = golden["idx_shuffle"][:, : mask.visible_index.shape[1]].argsort(1)
    stored = golden["encoded"]
    assert_close(encoded.prefix, stored[:, :1], rtol=0, atol=1e-4)
    assert_close(encoded.tokens, stored[:, 1:].take_along_dim(order.unsqueeze(-1), 1), rtol=0, atol=1e-4)


def test_gradients(golden: Golden) -> None:
    found, objective, batch = prepared(golden)
    objective(batch)["loss"].backward()
    stored = golden.under("grad/")
    bias = stored.pop("lm_head.proj.bias", None)
    check_gradients(objective, found.loaded, BootMAE().adapt(stored))
    if bias is not None:  # officially one a channel
        ours = objective.terms["pixels"].head.proj.bias.grad.view(-1, len(bias)).sum(0)
        assert_close(ours, bias, rtol=0, atol=1e-4 * bias.abs().max().item())
    assert not any(parameter.requires_grad for parameter in objective.teachers.parameters())


def test_the_feature_weight_and_the_decay_are_those_of_the_epoch(golden: Golden) -> None:
    _, objective, _ = prepared(golden)
    at = progress(golden)
    weight = objective.recipe.terms["features"].weight(at.fraction)
    assert weight == pytest.approx(golden["feature_weight_used"].item(), rel=1e-6)
    decay = objective.recipe.terms["features"].teacher.decay(at.epoch_fraction)
    assert decay == pytest.approx(golden["ema_decay_used"].item(), abs=1e-7)


def test_momentum_update(golden: Golden) -> None:
    """Of the encoder; official code also averages both decoders, and reads them nowhere."""
    found, objective, _ = prepared(golden)
    objective.on_step_end(progress(golden))
    ours, names = objective.state_dict(), {official: name for name, official in found.loaded.items()}
    after = {f"model_ema.{name}": value for name, value in golden.under("teacher_after/").items()}
    of_encoder = {name: value for name, value in after.items() if name in names}
    assert of_encoder
    for name, value in of_encoder.items():
        assert_close(ours[names[name]], value, rtol=0, atol=1e-6)
    assert {*after} - {*of_encoder} <= {*found.ignored}


def test_every_tensor_is_accounted_for(golden: Golden) -> None:
    state, found = official(golden), imported(golden)
    assert {*found.loaded.values()} | {*found.ignored} == {*BootMAE().adapt(state)}
    tables = {name for name, reason in found.ignored.items() if reason.startswith("fixed table, computed by unimim")}
    assert tables == {f"{at}{name}" for at in ("", "model_ema.") for name in ("pos_embed", "de_pos_embed")}
    others = {*found.ignored} - tables
    assert all(name.startswith("model_ema.") for name in others)
    trained = {name for name, _ in found.objective().named_parameters() if not name.startswith("teachers.")}
    assert trained <= {*found.loaded}
    student: Any = found.recipe.student
    sizes = {"dim": "embed_dim", "depth": "depth", "patch_size": "patch_size", "image_size": "img_size"}
    assert {ours: getattr(student, ours) for ours in sizes} == {a: golden.config[b] for a, b in sizes.items()}
    pixels: Any = found.recipe.terms["pixels"].head
    assert (pixels.dim, pixels.depth) == (golden.config["decode_dim"], golden.config["decoder_depth"])


def test_a_file_without_momentum_teacher_starts_it_from_the_student(golden: Golden) -> None:
    found = imported(golden, golden.under("state/"))
    assert "momentum teacher starts as a copy" in found.notes[-1]
    assert found.state["teachers.features.copy.student.prefix"].equal(golden["state/cls_token"])


def test_what_the_importer_refuses(golden: Golden) -> None:
    state = golden.under("state/")
    with pytest.raises(ValueError, match=r"give student\.num_heads=\.\.\. .*terms\.features\.head\.num_heads=\.\.\."):
        BootMAE().read(state)
    short = {name: tensor for name, tensor in state.items() if name != "decode_blocks_1.0.norm4.bias"}
    with pytest.raises(ValueError, match=r"branches\.features\.head\.blocks\.0\.inject\.attn\.norm\.bias"):
        imported(golden, short)
    table, side = state["de_pos_embed"].clone(), golden.config["img_size"] // golden.config["patch_size"]
    table[0, 1:] = sincos_2d((side, side), table.shape[-1], "column")
    with pytest.raises(ValueError, match="de_pos_embed is not the fixed table"):
        imported(golden, state | {"de_pos_embed": table})


def test_an_encoder_alone_starts_both_decoders_afresh(golden: Golden) -> None:
    """As of the files for fine-tuning; the decoders then have the recipe's sizes."""
    prefixes = ("decode_", "down", "mask_token", "lm_head", "de_pos_embed")
    state = {name: tensor for name, tensor in golden.under("state/").items() if not name.startswith(prefixes)}
    given = [line for line in overrides(golden) if not line.startswith("mask=")]
    small = [*given, "mask={name: random, ratio: 0.75}"]
    with pytest.raises(ValueError, match="no tensors of the head"):
        BootMAE().read(state, small)
    found = BootMAE().read(state, small, allow_missing_head=True)
    assert {name.split(".")[1] for name in found.fresh} == {"pixels", "features"}
    found.objective()


def test_the_momentum_schedule_with_and_without_the_second_rise() -> None:
    golden = read("piece_momentum_schedules")
    steps = golden["bootmae/epoch"].tolist()
    epochs, start = max(steps) + 1, golden.json("meta")["bootmae"]["model_ema_decay"]
    for dynamic in (True, False):
        schedule = Schedule.model_validate(momentum(epochs, dynamic) | {"start": start})
        stored = golden[f"bootmae/momentum_dynamic{int(dynamic)}"].tolist()
        assert [schedule(step / epochs) for step in steps] == pytest.approx(stored, abs=1e-12)


@pytest.mark.parametrize("epochs", [40, 800, 801])
def test_the_feature_weight_is_exact_where_an_epoch_begins(epochs: int) -> None:
    schedule = Schedule.model_validate(ramp(epochs))
    for epoch in range(epochs):
        assert schedule(epoch / epochs) == pytest.approx(min(4 * (1 + epoch) / epochs, 1), abs=1e-12)
    inside = [schedule((epoch + 0.999) / epochs) - schedule(epoch / epochs) for epoch in range(epochs)]
    assert 0 <= min(inside) <= max(inside) <= 4 / epochs


def test_blocks_are_where_and_as_compact_as_official_ones() -> None:
    """Of the blocks alone, as they are before the order is turned."""
    golden = read("piece_mask_generators")
    stats = golden.json("stats")["bootmae_120"]
    (side, budget), more = stats["config"]["args"], stats["config"]["kwargs"]
    counts = golden["bootmae_120/counts"]
    config = RolledBlock.Config(
        blocks=(budget + 0.5) / side**2, min_block=more["min_num_patches"], max_block=more["max_num_patches"]
    )
    sampler, generator = config.build(), np.random.default_rng(0)
    draws: Any = [sampler.draw_blocks((side, side), generator) for _ in counts]  # type: ignore[attr-defined]
    masks = np.stack(draws).reshape(-1, side, side)
    assert {*masks.sum((1, 2)).tolist()} == {*counts.tolist()} == {budget}
    alike = (masks[:, 1:] == masks[:, :-1]).sum((1, 2)) + (masks[:, :, 1:] == masks[:, :, :-1]).sum((1, 2))
    assert alike.mean() / (2 * side * (side - 1)) == pytest.approx(stats["neighbour_agreement"], abs=0.002)
    frequency = golden["bootmae_120/freq"].numpy().reshape(side, side)
    error = np.sqrt(2 / len(counts) * frequency * (1 - frequency))
    assert (np.abs(masks.mean(0) - frequency) <= 5.5 * error).all()


def test_hidden_patches_weigh_as_much_as_official_ones() -> None:
    """Twenty official block masks, finished by the official rule: turn an order in which blocks come last, hide the end."""
    golden, generator = read("piece_mask_generators"), np.random.default_rng(0)
    side, _ = golden.json("stats")["bootmae_120"]["config"]["args"]
    config, grid = RolledBlock.Config(), (side, side)
    sampler: Any = config.build()
    first: Any = np.unpackbits(golden["bootmae_120/first20"].numpy(), axis=1)[:, : side**2]
    theirs, ours = [], []
    for blocks in np.repeat(first, 20, axis=0):
        order = np.roll((blocks + generator.random(side**2)).argsort(), generator.integers(4))
        hidden = np.zeros((1, side**2), dtype=bool)
        hidden[0, order[-config.num_hidden(grid) :]] = True  # type: ignore[operator]
        drawn = sampler.sample(grid, generator)
        theirs.append(sampler.weight(hidden, grid)[hidden].mean())
        ours.append(sampler.weight(drawn, grid)[drawn].mean())
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=float(5 * np.std(ours) / len(first) ** 0.5))
    assert np.mean(ours) == pytest.approx(1.803, abs=0.003)
