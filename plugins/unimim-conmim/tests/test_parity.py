"""One step of TencentARC/ConMIM @ 4263955 against ours, through the importer, from stored images, masks and weights."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from unimim_conmim.importer import ConMIM

from unimim import Batch, Objective, Progress, Schedule, View
from unimim.importers import Imported, convert
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))
STEPS = sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem.startswith("conmim")) or ["conmim"]
LAST = "branches.mim.head.layers.7."


@pytest.fixture(params=STEPS, scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


def read(name: str) -> Golden:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.fail(f"no file {path}; UNIMIM_GOLDENS names the folder")
    return Golden(path)


def official(golden: Golden) -> dict[str, Tensor]:
    """Both official files as parts of one, the way `convert` hands them on."""
    copies = {f"model_copy.{name}": tensor for name, tensor in golden.under("teacher_state/").items()}
    return golden.under("state/") | copies


def overrides(golden: Golden) -> list[str]:
    config = golden.config
    assert config["mask_type"] == "random_mps32"
    assert config["drop_path_rate"] == 0
    return [
        f"student.num_heads={config['num_heads']}",
        f"student.eps={config['norm_eps']}",
        f"mask.unit={config['mask_patch_size'] // config['patch_size']}",
        f"mask.ratio={config['mask_ratio']}",
        f"loss.temperature={config['temp']}",
        f"teacher.decay={config['momentum']}",
        *golden.unnormalized("student"),
    ]


@pytest.fixture(scope="module")
def found(golden: Golden) -> Imported:
    return ConMIM().read(official(golden), overrides(golden))


def batch(golden: Golden) -> Batch:
    (name,) = {key for key in golden if key.startswith("images_")}
    given = golden.batch()
    return replace(given, views={**given.views, "other": View(golden[name])})


def training(found: Imported) -> Any:
    return found.objective().train()


def test_the_loss(golden: Golden, found: Imported) -> None:
    assert training(found)(batch(golden))["loss"].item() == pytest.approx(golden["loss"].item(), rel=1e-5)


def test_predictions_targets_and_logits(golden: Golden, found: Imported) -> None:
    (step,) = training(found).predictions(batch(golden))["mim"]
    pred, target = step.preds[0].detach(), step.dense
    assert_close(target, golden["teacher_features"], rtol=0, atol=1e-4)
    assert_close(F.normalize(target, dim=-1), golden["target"], rtol=0, atol=1e-4)
    assert_close(pred.flatten(0, 1), golden["pred"], rtol=0, atol=1e-4)
    assert_close(step.query.index.flatten(), golden["labels"], rtol=0, atol=0)
    logits = F.normalize(pred, dim=-1) @ F.normalize(target, dim=-1).mT / golden.config["temp"]
    assert_close(logits.flatten(0, 1), golden["logits"], rtol=0, atol=1e-3)


def test_predictions_everywhere(golden: Golden, found: Imported) -> None:
    objective, given = training(found), batch(golden)
    encoded = objective.student(given.views["main"], given.masks["main"][0])
    assert_close(torch.cat([encoded.prefix, encoded.tokens], 1), golden["encoded"], rtol=0, atol=1e-4)
    everywhere = torch.arange(golden["mask"].shape[1]).expand_as(golden["mask"])
    (head,) = [branch.head for branch in objective.branches.values()]
    query = replace(objective.terms["mim"].query(given.masks["main"][0], given.views["main"]), index=everywhere)
    assert_close(head(encoded, query), golden["pred_all"], rtol=0, atol=1e-4)


def test_gradients(golden: Golden, found: Imported) -> None:
    objective = training(found)
    objective(batch(golden))["loss"].backward()
    check_gradients(objective, found.loaded, golden.under("grad/"))
    assert not any(parameter.requires_grad for parameter in objective.teachers.parameters())


def test_momentum_update(golden: Golden, found: Imported) -> None:
    objective = training(found)
    objective(batch(golden))
    objective.on_step_end(Progress(0, 1, 1))
    ours, names = objective.state_dict(), {key: name for name, key in found.loaded.items()}
    after = golden.under("teacher_after/")
    assert after
    for name, value in after.items():
        assert_close(ours[names[f"model_copy.{name}"]], value, rtol=0, atol=1e-6)


def test_every_parameter_of_the_copy_follows_and_its_running_statistics_are_its_own(
    golden: Golden, found: Imported
) -> None:
    objective, momentum = training(found), golden.config["momentum"]
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective(batch(golden))
    moved = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.on_step_end(Progress(0, 1, 1))
    for name, value in objective.teachers["mim"].copy.named_parameters():
        live = before[("" if name.startswith("student.") else "branches.mim.") + name]
        assert_close(value, momentum * before[f"teachers.mim.copy.{name}"] + (1 - momentum) * live, rtol=0, atol=1e-6)
    after = objective.state_dict()
    running = [name for name in after if "running" in name]
    assert len(running) == 12
    assert all(after[name].equal(moved[name]) and not after[name].equal(before[name]) for name in running)


def test_running_statistics_are_a_tenth_of_all_tokens_of_the_view(golden: Golden, found: Imported) -> None:
    """m <- 0.9 m + 0.1 mean over B (1 + N) tokens of what enters the last norm, its variance unbiased."""
    objective, entered = training(found), []
    objective.terms["mim"].head.layers[7].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    objective(batch(golden))
    tokens, state, after = entered[0].flatten(0, 1), found.state, objective.state_dict()
    assert len(tokens) == golden["encoded"].shape[0] * golden["encoded"].shape[1]
    mean = 0.9 * state[f"{LAST}running_mean"] + 0.1 * tokens.mean(0)
    variance = 0.9 * state[f"{LAST}running_var"] + 0.1 * tokens.var(0)
    assert_close(after[f"{LAST}running_mean"], mean, rtol=0, atol=1e-6)
    assert_close(after[f"{LAST}running_var"], variance, rtol=1e-5, atol=1e-6)


def test_decay_schedule() -> None:
    golden = read("piece_momentum_schedules")
    start, end, epochs, steps_per_epoch = golden.json("meta")["conmim"]
    schedule, total = Schedule(start=start, end=end, shape="cosine"), epochs * steps_per_epoch
    ours = [schedule(step / total) for step in golden["conmim/step"].tolist()]
    assert ours == pytest.approx(golden["conmim/momentum"].tolist(), abs=1e-9)


def test_every_stored_tensor_is_loaded_or_accounted_for(golden: Golden, found: Imported) -> None:
    assert {*found.loaded.values()} | {*found.ignored} == {*official(golden)}
    assert all("lm_head" in name or "relative_position_index" in name for name in found.ignored)
    built = found.objective().state_dict()
    assert {*built} == {*found.loaded}


def test_one_official_file_alone_is_a_student_and_its_copy(golden: Golden, tmp_path: Path) -> None:
    """checkpoint_copy-N.pth, read as a student of its own: what official fine-tuning starts from."""
    torch.save({"model": golden.under("teacher_state/")}, tmp_path / "checkpoint_copy.pth")
    done = convert(tmp_path / "checkpoint_copy.pth", "conmim", tmp_path / "weights", overrides(golden))
    assert any("has no model_copy" in note for note in done.notes)
    alone = ConMIM().read(golden.under("teacher_state/"), overrides(golden))
    objective: Any = alone.objective()
    teacher = objective.teachers["mim"].copy
    for part, copy in ((objective.student, teacher["student"]), (objective.terms["mim"].head, teacher["head"])):
        theirs = copy.state_dict()
        assert all(theirs[name].equal(value) for name, value in part.state_dict().items())
    assert objective.student.prefix.equal(golden["teacher_state/cls_token"])


def test_both_official_files_in_one_are_read_by_convert(golden: Golden, found: Imported, tmp_path: Path) -> None:
    both = {"model": golden.under("state/"), "model_copy": golden.under("teacher_state/")}
    torch.save(both, tmp_path / "both.pth")
    done = convert(tmp_path / "both.pth", "conmim", tmp_path / "weights", overrides(golden))
    assert done.loaded == found.loaded
    assert not any("has no model_copy" in note for note in done.notes)


def test_the_importer_refuses_what_it_cannot_account_for(golden: Golden) -> None:
    state = official(golden)
    short = {name: tensor for name, tensor in state.items() if name != "model_copy.projectors.3.weight"}
    with pytest.raises(ValueError, match=r"teachers\.mim\.copy\.head\.layers\.3\.weight"):
        ConMIM().read(short, overrides(golden))
    bare = {name: tensor for name, tensor in golden.under("state/").items() if "projectors" not in name}
    with pytest.raises(ValueError, match="allow a missing head"):
        ConMIM().read(bare, overrides(golden))
    alone = ConMIM().read(bare, overrides(golden), allow_missing_head=True)
    assert {name.partition("layers")[0] for name in alone.fresh} == {
        "branches.mim.head.",
        "teachers.mim.copy.head.",
    }
    objective: Any = alone.objective()
    assert isinstance(objective, Objective)
    fresh = objective.teachers["mim"].copy["head"].layers[0].weight
    assert fresh.equal(objective.terms["mim"].head.layers[0].weight)
