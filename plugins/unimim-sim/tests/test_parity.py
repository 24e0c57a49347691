"""SIM against OpenGVLab/Siamese-Image-Modeling @ bbdec30, through the importer, from stored views, masks and geometry.

UNIMIM_GOLDENS names another folder of such files; every size is read from them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from unimim_sim.importer import SIMImporter
from unimim_sim.positions import relative_code

from unimim import Batch, Mask, Progress, TargetSpec, View, load, plugins
from unimim.importers import Imported
from unimim.layers import sincos_2d
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))
COPY = "teachers.mim.copy."


def read(name: str) -> Golden:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.fail(f"no file {path}; UNIMIM_GOLDENS names the folder")
    return Golden(path)


@pytest.fixture(params=[path.stem for path in sorted(FOLDER.glob("sim*.npz")) if "simmim" not in path.stem] or ["sim"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


def imported(golden: Golden, *overrides: str, state: Mapping[str, Tensor] | None = None, **options: bool) -> Imported:
    config = golden.config
    decay = {"start": config["args"]["mm"], "end": 1.0, "shape": "cosine"}
    sizes = [
        f"student.num_heads={config['num_heads']}",
        f"student.eps={config['norm_eps']}",
        f"head.num_heads={config['decoder_num_heads']}",
        f"loss.negative_weight={config['args']['neg_weight']}",
        f"mask.count={config['blockwise_num_masking_patches']}",
        f"mask.min_block={config['min_mask_patches_per_block']}",
        f"teacher.decay={decay}",
        *golden.unnormalized("student"),
    ]
    return SIMImporter().read(golden.under("state/") if state is None else state, [*sizes, *overrides], **options)


def geometry(stored: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(box, flip) of two views with the stored differences: the first is the whole image as it is."""
    names = ("delta_i", "delta_j", "delta_h", "delta_w", "relative_flip", "flip_delta_j")
    top, left, height, width, flip, mirrored = (stored[name] for name in names)
    left = torch.where(flip, mirrored - width, left)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(flip), -1)
    return (whole, torch.zeros_like(flip)), (torch.stack([top, left, height, width], 1), flip)


def views(golden: Golden) -> Batch:
    seen, wanted = geometry(golden)
    images = {"main": View(golden["images"], {}, *seen), "other": View(golden["images_teacher"], {}, *wanted)}
    mask = Mask.from_hidden(golden["mask"])
    return Batch(images, {"main": (mask,)}, torch.arange(len(golden["mask"])))


def stepped(golden: Golden) -> tuple[Imported, Any, Batch]:
    """The objective in training mode at the stored epoch's first step, whose momentum update is done."""
    found = imported(golden)
    objective: Any = found.objective().train()
    objective.on_step_start(Progress(golden.config["epoch"], golden.config["epochs"], 1))
    return found, objective, views(golden)


def test_the_loss(golden: Golden) -> None:
    _, objective, batch = stepped(golden)
    assert objective(batch)["loss"].item() == pytest.approx(golden["loss"].item(), rel=1e-5)


def test_encoded_tokens(golden: Golden) -> None:
    _, objective, batch = stepped(golden)
    encoded = objective.student(batch.views["main"], *batch.masks["main"])
    assert_close(torch.cat([encoded.prefix, encoded.tokens], 1), golden["encoded"], rtol=0, atol=1e-4)


def test_the_target_before_and_after_its_norm_and_the_predictions(golden: Golden) -> None:
    _, objective, batch = stepped(golden)
    raw = objective.teachers["mim"](batch.views["other"]).tokens
    assert_close(raw, golden["teacher_features"], rtol=0, atol=1e-4)
    (step,) = objective.predictions(batch)["mim"]
    assert_close(step.target, golden["target"], rtol=0, atol=1e-4)
    assert_close(step.preds[0], golden["pred"], rtol=0, atol=1e-4)


def test_the_places_of_the_second_view(golden: Golden) -> None:
    _, objective, batch = stepped(golden)
    head = objective.terms["mim"].head
    seen, wanted = ((batch.views[name].box, batch.views[name].flip) for name in ("main", "other"))
    code = relative_code(head.grid, seen, wanted, head.omega)
    assert_close(code, golden["relative_pos_embed"], rtol=0, atol=1e-5)
    assert_close(head.relative(code), golden["relative_pos_embed_mapped"], rtol=0, atol=1e-4)


def test_gradients(golden: Golden) -> None:
    found, objective, batch = stepped(golden)
    objective(batch)["loss"].backward()
    check_gradients(objective, found.loaded, golden.under("grad/"))


def test_the_momentum_update_comes_before_the_target(golden: Golden) -> None:
    """Parameters move by the stored momentum; a later update would give another target."""
    found, objective, batch = stepped(golden)
    decay = objective.recipe.terms["mim"].teacher.decay(golden.config["epoch"] / golden.config["epochs"])
    assert decay == pytest.approx(golden["momentum_used"].item(), abs=1e-7)
    ours, after = {official: name for name, official in found.loaded.items()}, objective.state_dict()
    stored = golden.under("state_after/")
    assert stored
    for official, value in stored.items():
        assert_close(after[ours[official]], value, rtol=0, atol=1e-7)
        assert not after[ours[official]].equal(golden["state/" + official])
    late: Any = imported(golden).objective().train()
    (step,) = late.predictions(batch)["mim"]
    assert (step.target - golden["target"]).abs().max() > 1e-4


def test_the_teachers_batchnorms_use_the_batch_and_their_own_buffers(golden: Golden) -> None:
    """In eval mode its targets are others; the momentum update leaves the running statistics alone."""
    found, objective, batch = stepped(golden)
    before = {name: x.clone() for name, x in objective.named_buffers() if "running" in name}
    assert before
    assert all(x.equal(found.state[name]) for name, x in before.items())
    objective(batch)
    moved = [name for name, x in objective.named_buffers() if "running" in name and not x.equal(before[name])]
    assert sorted(moved) == sorted(before)
    objective.eval()
    (step,) = objective.predictions(batch)["mim"]
    assert (step.target - golden["target"]).abs().max() > 1e-2


def test_every_tensor_is_accounted_for(golden: Golden) -> None:
    state, found = golden.under("state/"), imported(golden)
    assert {*found.loaded.values(), *found.ignored} == {*state}
    assert {*found.ignored} == {"pos_embed", "decoder_pos_embed", "mm_mask_token"}
    copied = {official for name, official in found.loaded.items() if name.startswith(COPY)}
    assert copied == {name for name in state if name.startswith("mm_")} - {"mm_mask_token"}
    config, student = golden.config, found.recipe.student
    for ours, official in {
        "dim": "embed_dim",
        "depth": "depth",
        "patch_size": "patch_size",
        "image_size": "img_size",
    }.items():
        assert getattr(student, ours) == config[official]
    head: Any = found.recipe.terms["mim"].head
    assert (head.dim, head.projector_depth) == (config["decoder_embed_dim"], config["args"]["projector_depth"])
    assert head.predictor_depth == config["args"]["predictor_depth"]


def test_a_file_of_the_student_alone_starts_head_and_teacher_afresh(golden: Golden) -> None:
    encoder = ("cls_token", "pos_embed", "patch_embed.", "blocks.")
    state = {name: tensor for name, tensor in golden.under("state/").items() if name.startswith(encoder)}
    sizes = [f"head.dim={golden.config['decoder_embed_dim']}", f"teacher.head_dim={golden.config['decoder_embed_dim']}"]
    with pytest.raises(ValueError, match="no tensors of the head"):
        imported(golden, *sizes, state=state)
    found = imported(golden, *sizes, state=state, allow_missing_head=True)
    assert any("starts as a copy of the student" in note for note in found.notes)
    assert {name for name in found.state if name.startswith(COPY)} == {
        COPY + name for name in found.state if name.startswith("student.")
    }
    losses = found.objective().train()(views(golden))
    assert losses["loss"].isfinite()


def test_column_first_positions_are_refused(golden: Golden) -> None:
    """What MAE's table would do: the student would see other positions."""
    state = golden.under("state/")
    side = golden.config["img_size"] // golden.config["patch_size"]
    for name in ("pos_embed", "decoder_pos_embed"):
        table = state[name].clone()
        table[0, 1:] = sincos_2d((side, side), table.shape[-1], "column")
        with pytest.raises(ValueError, match="position code"):
            imported(golden, state=state | {name: table})


@pytest.mark.parametrize("number", [0, 1])
def test_unigrad_and_its_gradient(number: int) -> None:
    """Also behind a LayerNorm of the predictions, which the published script leaves off."""
    golden = read("piece_unigrad")
    target = F.layer_norm(golden["in/target"], golden["in/target"].shape[-1:])
    assert_close(target, golden["target_normed"], rtol=0, atol=1e-6)
    config = plugins()["losses"]["unigrad"].Config(negative_weight=float(golden["in/neg_weight"][number]))
    loss = config.build(TargetSpec(target.shape[-1]))
    for online in (False, True):
        pred = golden["in/pred"].requires_grad_()
        value = loss(F.layer_norm(pred, pred.shape[-1:]) if online else pred, target).mean()
        assert value.item() == pytest.approx(golden[f"loss/w{number}_online{online:d}"].item(), rel=1e-6)
        value.backward()
        stored = golden[f"grad/w{number}_online{online:d}"]
        assert_close(pred.grad, stored, rtol=0, atol=1e-6 * stored.abs().max().item())


def test_the_momentum_schedule() -> None:
    golden = read("piece_momentum_schedule_sim")
    decay: Any = load("sim", [f"teacher.decay.start={golden['in/mm'].item()}"]).terms["mim"].teacher
    fractions = (golden["epoch_float"] / golden["in/epochs"]).tolist()
    assert [decay.decay(fraction) for fraction in fractions] == pytest.approx(golden["momentum"].tolist(), abs=1e-12)


def test_position_codes() -> None:
    golden = read("piece_pos_embeds")
    tables = {name: table for name, table in golden.under("sim/").items() if table.ndim == 2}
    assert tables
    for name, table in tables.items():
        dim, side = (int(part[1:]) for part in name.split("_"))
        assert_close(sincos_2d((side, side), dim, "row"), table, rtol=0, atol=1e-5)
    stored = golden["sim_relative"]
    side, width = math.isqrt(stored.shape[1]), stored.shape[2] // 8
    omega = 10000.0 ** -(torch.arange(width) / width)
    code = relative_code((side, side), *geometry(golden.under("in/")), omega)
    assert_close(code, stored, rtol=0, atol=1e-5)
