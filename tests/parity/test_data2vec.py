"""data2vec against facebookresearch/data2vec_vision @ af9a363, through the importer, from stored images and masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from unimim import Progress, Schedule, Tap
from unimim.importers.base import Imported
from unimim.importers.data2vec import Data2vec
from unimim.testing import check_gradients


def norm(chosen: dict[str, bool]) -> str:
    """The official order of its parameter-free norms is batch, instance, layer; none is the identity."""
    return f"[{', '.join(name for name, on in chosen.items() if on)}]" if any(chosen.values()) else "identity"


def loss(config: dict[str, Any]) -> dict[str, Any] | str:
    assert config["var_w1"] == 0
    assert config["loss_scale"] == -1
    regression: Any = "l2" if config["l2_loss"] else {"name": "smooth_l1", "beta": config["l1_beta"]}
    if config["var_w0"] == 0:
        return regression  # type: ignore[no-any-return]
    variance = {"loss": {"name": "variance", "margin": config["var_margin0"]}, "weight": config["var_w0"]}
    return {"name": "sum", "losses": [{"loss": regression}, variance]}


def imported(golden: Any) -> Imported:
    config = golden.config
    flags = {kind: config[f"target_{kind}_norm"] for kind in ("batch", "instance")}
    post = {kind: config[f"post_target_{kind}_norm"] for kind in ("instance", "layer")}
    overrides = [
        f"student.eps={config['norm_eps']}",
        f"student.num_heads={config['num_heads']}",
        "student.drop_path=0",
        "student.attention_dropout=0",
        f"mask.count={config['num_mask_patches']}",
        f"mask.min_block={config['min_mask_patches_per_block']}",
        f"teacher.layers={config['target_layers']}",
        f"teacher.point={'block' if config['layer_results'] == 'end' else 'mlp'}",
        f"teacher.layer_norm={norm(flags | {'layer': config['target_layer_norm_last']})}",
        f"teacher.decay={golden['ema_decay_used'].item()}",
        f"norm={norm(post)}",
        f"loss={loss(config)}",
    ]
    state = golden.under("state/") | {f"model_ema.{name}": t for name, t in golden.under("teacher_state/").items()}
    return Data2vec().read(state, [*overrides, *golden.unnormalized("student")])


def test_loss_targets_and_predictions(data2vec_golden: Any) -> None:
    batch = data2vec_golden.batch()
    objective: Any = imported(data2vec_golden).objective()
    (step,) = objective.predictions(batch)["mim"]
    (mask,) = batch.masks["main"]
    valid = torch.ones_like(mask.hidden_index, dtype=torch.bool) if mask.hidden_valid is None else mask.hidden_valid
    assert_close(step.target[valid], data2vec_golden["target"], rtol=0, atol=1e-4)
    assert_close(step.preds[0][valid], data2vec_golden["pred"], rtol=0, atol=1e-4)
    assert objective(batch)["loss"].item() == pytest.approx(data2vec_golden["loss"].item(), rel=1e-5)


def test_the_variance_term_is_all_that_separates_loss_and_regression(data2vec_golden: Any) -> None:
    found, batch = imported(data2vec_golden), data2vec_golden.batch()
    objective = found.objective()
    (step,) = objective.predictions(batch)["mim"]
    whole: Any = objective.terms["mim"].loss
    regression = whole.losses[0] if found.recipe.terms["mim"].loss.name == "sum" else whole
    valid = step.query.valid if step.query.valid is not None else torch.ones(step.target.shape[:2], dtype=torch.bool)
    value = regression(step.preds[0], step.target)[valid].mean()
    assert value.item() == pytest.approx(data2vec_golden["loss_regression"].item(), rel=1e-5)


def test_encoded_tokens_and_teacher_blocks(data2vec_golden: Any) -> None:
    batch = data2vec_golden.batch()
    objective: Any = imported(data2vec_golden).objective()
    view, (mask,) = batch.views["main"], batch.masks["main"]
    encoded = objective.student(view, mask)
    assert_close(torch.cat([encoded.prefix, encoded.tokens], 1), data2vec_golden["encoded"], rtol=0, atol=1e-4)
    teacher: Any = objective.teachers["mim"]
    taps = [Tap(block, teacher.config.point) for block in range(data2vec_golden.config["depth"])]
    blocks = teacher.copy["student"](view, None, taps).taps
    for tap in taps:
        assert_close(blocks[tap][:, 1:], data2vec_golden[f"teacher_block{tap.block}"], rtol=0, atol=1e-4)


def test_gradients(data2vec_golden: Any) -> None:
    found = imported(data2vec_golden)
    objective = found.objective()
    objective(data2vec_golden.batch())["loss"].backward()
    check_gradients(objective, found.loaded, data2vec_golden.under("grad/"))
    assert not any(parameter.requires_grad for parameter in objective.teachers.parameters())


def test_momentum_update(data2vec_golden: Any) -> None:
    found = imported(data2vec_golden)
    objective = found.objective()
    objective.on_step_end(Progress(0, 1, 1))
    ours = objective.state_dict()
    names = {official: name for name, official in found.loaded.items()}
    after = data2vec_golden.under("teacher_after/")
    assert after
    for official, value in after.items():
        assert_close(ours[names[f"model_ema.{official}"]], value, rtol=0, atol=1e-6)


def test_decay_schedule(piece: Any) -> None:
    """Official: linear from decay_init to decay over the first ema_start_at steps, then constant."""
    golden = piece("momentum_schedules")
    cases = {name: setting for name, setting in golden.json("meta").items() if name.startswith("data2vec")}
    assert cases
    for name, setting in cases.items():
        steps, momentum = golden[f"{name}/step"].tolist(), golden[f"{name}/momentum"].tolist()
        total = max(*steps, setting["ema_start_at"]) + 1
        until = setting["ema_start_at"] / total
        ramp = {"start": setting["decay_init"], "end": setting["decay"], "until": until}
        schedule = Schedule.model_validate(ramp if until else setting["decay"])
        assert [schedule(step / total) for step in steps] == pytest.approx(momentum, abs=1e-9)
