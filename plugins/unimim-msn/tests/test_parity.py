"""MSN against facebookresearch/msn @ 4388dc1, through the importer, from stored views, masks and prototypes.

UNIMIM_GOLDENS names another folder of such files; every size is read from them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from unimim_msn.importer import MSNImporter
from unimim_msn.loss import MSN, sinkhorn

from unimim import Batch, Mask, Progress, TargetSpec, View, load
from unimim.importers import Imported, convert
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))


def read(name: str) -> Golden:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.fail(f"no file {path}; UNIMIM_GOLDENS names the folder")
    return Golden(path)


@pytest.fixture(params=[path.stem for path in sorted(FOLDER.glob("msn*.npz"))] or ["msn"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


def tensors(golden: Golden) -> dict[str, Tensor]:
    """As the file holds them."""
    copies = {f"target_encoder.{name}": value for name, value in golden.under("teacher_state/").items()}
    return golden.under("state/") | copies | {"prototypes": golden["prototypes"]}


def imported(golden: Golden, more: tuple[str, ...] = ()) -> Imported:
    config = golden.config
    assert (config["rand_views"], config["ent_weight"], config["label_smoothing"]) == (1, 0, 0)
    assert config["use_bn"]
    focal = "".join(f", focal{number}: none" for number in range(config["focal_views"]))
    settings = [
        f"student.num_heads={config['num_heads']}",
        f"student.eps={config['norm_eps']}",
        "student.mean=[0, 0, 0]",
        "student.std=[1, 1, 1]",
        f"loss.temperature={config['temperature']}",
        f"loss.sharpening={golden['sharpen_T'].item()}",
        f"loss.sinkhorn={3 * config['use_sinkhorn']}",
        f"loss.me_max={config['memax_weight'] * config['me_max']}",
        f"teacher.decay={golden['momentum_used'].item()}",
        f"views.num_focal={config['focal_views']}",
        f"views.focal_size={config['focal_size']}",
        f"masks={{main: {{name: random, ratio: {config['patch_drop']}}}{focal}}}",
    ]
    return MSNImporter().read(tensors(golden), [*settings, *more])


def batch(golden: Golden) -> Batch:
    (main,), focal = golden["images"], golden["images_focal"]
    views = {"target": View(golden["images_teacher"]), "main": View(main)}
    count = len(main)
    masks = {"main": (Mask.from_hidden(golden["mask"].expand(count, -1), int(golden["mask"].sum())),)}
    small = (golden.config["focal_size"] // golden.config["patch_size"]) ** 2
    for number, images in enumerate(focal):
        views[f"focal{number}"] = View(images)
        masks[f"focal{number}"] = (Mask.from_hidden(torch.zeros(count, small, dtype=torch.bool), 0),)
    return Batch(views, masks, torch.arange(count))


def prepared(golden: Golden) -> tuple[Imported, Any, Batch]:
    found = imported(golden)
    return found, found.objective().train(), batch(golden)


def test_the_loss_and_its_parts_are_those_of_the_step(golden: Golden) -> None:
    _, objective, data = prepared(golden)
    assert objective(data)["loss"].item() == pytest.approx(golden["loss"].item(), rel=1e-5)
    objective = imported(golden, more=("loss.me_max=0",)).objective().train()
    assert objective(data)["loss"].item() == pytest.approx(golden["loss_ce"].item(), rel=1e-5)


def test_anchors_and_targets(golden: Golden) -> None:
    _, objective, data = prepared(golden)
    steps = objective.predictions(data)["mim"]
    assert_close(torch.cat([step.preds[0][:, 0] for step in steps]), golden["pred"], rtol=0, atol=1e-4)
    assert_close(steps[0].target[:, 0], golden["teacher_features"], rtol=0, atol=1e-4)
    targets = torch.cat([step.target[:, 0] for step in steps])
    assert_close(objective.terms["mim"].loss.assign(targets), golden["target"], rtol=0, atol=1e-5)


def test_gradients(golden: Golden) -> None:
    found, objective, data = prepared(golden)
    objective(data)["loss"].backward()
    stored = golden.under("grad/") | {"prototypes": golden["prototypes_grad"]}
    check_gradients(objective, found.loaded, stored)
    assert not any(parameter.requires_grad for parameter in objective.teachers.parameters())


def test_the_target_encoder_moves_after_the_step(golden: Golden) -> None:
    found, objective, data = prepared(golden)
    objective(data)
    objective.on_step_end(Progress(0, 10, 5))
    names, ours = {official: name for name, official in found.loaded.items()}, objective.state_dict()
    for official, value in golden.under("teacher_after/").items():
        assert_close(ours[names[f"target_encoder.{official}"]], value, rtol=0, atol=1e-6)


def test_every_tensor_is_accounted_for(golden: Golden) -> None:
    found, config = imported(golden), golden.config
    assert {*found.loaded.values()} == {*tensors(golden)}
    assert not found.ignored
    assert not found.fresh
    student: Any = found.recipe.student
    for ours, official in {
        "dim": "embed_dim",
        "depth": "depth",
        "image_size": "img_size",
        "patch_size": "patch_size",
    }.items():
        assert getattr(student, ours) == config[official]
    term: Any = found.recipe.terms["mim"]
    assert term.head.hidden == config["hidden_dim"]
    assert term.teacher.head_dim == config["output_dim"]
    assert term.loss.num_prototypes == config["num_proto"]


def test_a_file_is_converted_from_its_three_parts(golden: Golden, tmp_path: Path) -> None:
    parts = {
        "encoder": {f"module.{name}": value for name, value in golden.under("state/").items()},
        "target_encoder": {f"module.{name}": value for name, value in golden.under("teacher_state/").items()},
        "prototypes": golden["prototypes"],
        "epoch": 3,
    }
    torch.save(parts, tmp_path / "msn.pth.tar")
    done = convert(
        tmp_path / "msn.pth.tar", "msn", tmp_path / "out", [f"student.num_heads={golden.config['num_heads']}"]
    )
    assert len(done.loaded) == len(tensors(golden))
    assert not done.ignored


@pytest.mark.parametrize("iterations", [0, 3])
def test_the_loss_alone(iterations: int) -> None:
    golden = read("piece_msn_loss")
    case = golden.under(f"sinkhorn{int(iterations > 0)}_smooth0.0/")
    config = MSN.Config(
        num_prototypes=len(golden["in/prototypes"]),
        temperature=golden["in/tau"].item(),
        sharpening=golden["in/T"].item(),
        sinkhorn=iterations,
    )
    loss: Any = config.build(TargetSpec(golden["in/prototypes"].shape[1]))
    with torch.no_grad():
        loss.prototypes.copy_(golden["in/prototypes"])
    anchors = golden["in/anchors"].requires_grad_()
    targets = golden["in/targets"].repeat(int(golden["in/num_views"]), 1)
    assert_close(loss.assign(targets), case["targets"], rtol=0, atol=1e-6)
    value = loss(anchors.unsqueeze(1), targets.unsqueeze(1))
    assert value.item() == pytest.approx((case["ce"] + case["me_max"]).item(), rel=1e-6)
    value.backward()
    for ours, name in ((anchors.grad, "anchors"), (loss.prototypes.grad, "prototypes")):
        assert_close(ours, case[f"grad_{name}_ce_plus_memax"], rtol=0, atol=1e-6)


def test_balancing_targets_that_are_repeated_is_balancing_them_once() -> None:
    golden = read("piece_msn_loss")
    loss: Any = MSN.Config(num_prototypes=len(golden["in/prototypes"])).build(TargetSpec(golden["in/targets"].shape[1]))
    once = loss.assign(golden["in/targets"])
    assert_close(loss.assign(golden["in/targets"].repeat(3, 1)), once.repeat(3, 1), rtol=1e-5, atol=1e-6)


def test_sinkhorn_of_the_official_code() -> None:
    """Of the softmax of the anchors' inner products with the prototypes, divided by the temperature."""
    golden = read("piece_msn_loss")
    shares = (golden["in/anchors"] @ golden["in/prototypes"].T).softmax(1)
    assert_close(sinkhorn(shares, 3), golden["sinkhorn_of_softmax"], rtol=1e-5, atol=1e-7)


def test_momentum_rates_and_decay_of_every_step() -> None:
    """The official schedulers have moved once before the first step, so its rate and decay are our second step's."""
    golden = read("piece_momentum_schedule_msn")
    per_epoch, epochs = int(golden["in/ipe"]), int(golden["in/epochs"])
    total, policy = per_epoch * epochs, load("msn").optimization
    teacher: Any = load("msn").terms["mim"].teacher
    assert [teacher.decay(step / total) for step in range(total)] == pytest.approx(
        golden["momentum"].tolist(), abs=1e-9
    )
    rates = [
        policy.model_copy(update={"warmup_epochs": int(golden["in/warmup"])}).rate(step + 1, total, per_epoch, 1024)
        for step in range(total)
    ]
    assert rates == pytest.approx(golden["lr_schedule"].tolist(), abs=1e-9)
    decays = [policy.weight_decay((step + 1) / total) for step in range(total)]
    assert decays == pytest.approx(golden["wd_schedule"].tolist(), abs=1e-9)
