"""ExtreMA against microsoft/ExtreMA @ bf30b64, through the importer, from stored images and masks.

UNIMIM_GOLDENS names another folder of such files; every size is read from them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from unimim_extrema.importer import ExtreMAImporter

from unimim import Batch, Mask, Progress, TargetSpec, View, load, plugins
from unimim.importers import Imported
from unimim.layers import sincos_2d
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))
LATER = Progress(1, 10, 5)
"""Any step but the first, before which there is nothing to average."""


def read(name: str) -> Golden:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.fail(f"no file {path}; UNIMIM_GOLDENS names the folder")
    return Golden(path)


@pytest.fixture(params=[path.stem for path in sorted(FOLDER.glob("extrema*.npz"))] or ["extrema"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


def imported(golden: Golden, *overrides: str, state: Any = None) -> Imported:
    config = golden.config
    sizes = [
        f"student.num_heads={config['num_heads']}",
        f"student.eps={config['norm_eps']}",
        "student.drop_path=0",
        f"student.layer_scale={config['init_values']}",
        f"teacher.decay={config['ema_momentum']}",
        f"mask.folds={config['num_masks']}",
        f"mask.ratio={config['mask_ratio']}",
        *golden.unnormalized("student"),
    ]
    return ExtreMAImporter().read(golden.under("state/") if state is None else state, [*sizes, *overrides])


def batch(golden: Golden) -> Batch:
    folds = golden["mask"]
    count = int(folds[0, 0].sum())
    masks = tuple(Mask.from_hidden(fold, count) for fold in folds)
    views = {"main": View(golden["images"]), "other": View(golden["images_teacher"])}
    return Batch(views, {"main": masks}, torch.arange(folds.shape[1]))


def prepared(golden: Golden) -> tuple[Imported, Any, Batch]:
    """The objective after the momentum update that precedes the target, and the batch."""
    assert golden.config["loss_name"] == "byol"
    found = imported(golden)
    objective: Any = found.objective()
    objective.on_step_start(LATER)
    return found, objective, batch(golden)


def test_the_loss_is_that_of_the_step(golden: Golden) -> None:
    _, objective, data = prepared(golden)
    assert objective(data)["loss"].item() == pytest.approx(golden["loss"].item(), rel=1e-5)


def test_predictions_and_target(golden: Golden) -> None:
    _, objective, data = prepared(golden)
    steps = objective.predictions(data)["mim"]
    assert_close(torch.cat([step.preds[0][:, 0] for step in steps]), golden["pred"], rtol=0, atol=1e-4)
    for step in steps:
        assert_close(step.target[:, 0], golden["target_features"], rtol=0, atol=1e-4)
        unit = torch.nn.functional.normalize(step.target[:, 0], dim=-1)
        assert_close(unit, golden["target"], rtol=0, atol=1e-4)


def test_encoded_class_tokens(golden: Golden) -> None:
    _, objective, data = prepared(golden)
    encoded = [objective.student(data.views["main"], mask) for mask in data.masks["main"]]
    assert_close(torch.cat([one.prefix[:, 0] for one in encoded]), golden["encoded"], rtol=0, atol=1e-4)


def test_gradients(golden: Golden) -> None:
    found, objective, data = prepared(golden)
    objective(data)["loss"].backward()
    check_gradients(objective, found.loaded, golden.under("grad/"))
    assert not any(parameter.requires_grad for parameter in objective.teachers.parameters())


def test_the_momentum_encoder_moves_before_the_target_is_made(golden: Golden) -> None:
    found, objective, data = prepared(golden)
    names, ours = {official: name for name, official in found.loaded.items()}, objective.state_dict()
    after, before = golden.under("state_after/"), golden.under("state/")
    assert after
    for official, value in after.items():
        assert_close(ours[names[official]], value, rtol=0, atol=1e-6)
        base = before[official.replace("momentum_", "base_")]
        assert (base - before[official]).abs().max() > 1e-3, "so that the update can be seen"
    late: Any = imported(golden).objective()
    (step, *_) = late.predictions(data)["mim"]
    assert (step.target[:, 0] - golden["target_features"]).abs().max() > 1e-5, "without the update it is another target"


def test_the_masks_are_runs_of_one_order(golden: Golden) -> None:
    """The official sampler, from the stored noise, hides what our masks hide, and ours as many."""
    config, (noise, *more) = golden.config, golden["noise"]
    if not config["disjoint"]:
        pytest.skip("independent masks, which the official command line cannot ask for")
    assert not more
    found = imported(golden)
    sampler: Any = found.recipe.masks["main"]
    visible = sampler.num_visible(found.recipe.student.geometry.grid)
    runs = noise.argsort(1)[:, : config["num_masks"] * visible].unflatten(1, (config["num_masks"], visible))
    assert runs.transpose(0, 1).equal(golden["keep_ids"])
    hidden = torch.ones_like(golden["mask"]).scatter(2, golden["keep_ids"], False)
    assert hidden.equal(golden["mask"])
    assert ((~hidden).sum(0) <= 1).all(), "no patch is seen twice"


def test_every_tensor_is_accounted_for(golden: Golden) -> None:
    state, found, config = golden.under("state/"), imported(golden), golden.config
    assert {*found.loaded.values(), *found.ignored} == {*state}
    assert {*found.ignored} == {"base_encoder.pos_embed", "momentum_encoder.pos_embed"}
    assert all(reason.startswith("fixed table, computed by unimim") for reason in found.ignored.values())
    assert not found.fresh
    student: Any = found.recipe.student
    for ours, official in {
        "dim": "embed_dim",
        "depth": "depth",
        "class_depth": "class_attention_layers",
        "mlp_ratio": "mlp_ratio",
        "patch_size": "patch_size",
        "image_size": "img_size",
    }.items():
        assert getattr(student, ours) == config[official]
    term: Any = found.recipe.terms["mim"]
    assert (term.teacher.head_dim, term.head.hidden) == (config["proj_dim"], config["mlp_dim"])
    copied = [name for name in found.state if name.startswith("teachers.mim.copy.")]
    assert {*found.objective().teachers.mim.copy.state_dict()} == {  # type: ignore[union-attr,operator]
        name.removeprefix("teachers.mim.copy.") for name in copied
    }
    assert not any("predictor" in name for name in copied)


def test_without_a_momentum_encoder_the_copy_is_the_encoder(golden: Golden) -> None:
    state = {name: value for name, value in golden.under("state/").items() if not name.startswith("momentum_")}
    found = imported(golden, state=state)
    assert any("starts as a copy of the student" in note for note in found.notes)
    objective: Any = found.objective()
    for part, live in (("student", objective.student), ("head", objective.terms["mim"].head)):
        for name, parameter in objective.teachers["mim"].copy[part].named_parameters():
            assert parameter.equal(live.get_parameter(name))


def test_without_a_head_it_starts_afresh(golden: Golden) -> None:
    state = {
        name: value
        for name, value in golden.under("state/").items()
        if not name.startswith(("predictor.", "base_encoder.head."))
    }
    with pytest.raises(ValueError, match="no tensors of the head"):
        imported(golden, state=state)
    bare = {name: value for name, value in state.items() if not name.startswith("momentum_")}
    sizes = [f"student.num_heads={golden.config['num_heads']}"]
    found = ExtreMAImporter().read(bare, sizes, allow_missing_head=True)
    assert {name.partition("projector")[0].partition("predictor")[0] for name in found.fresh} == {
        "branches.mim.head.",
        "teachers.mim.copy.head.",
    }


def test_row_first_positions_and_a_missing_table_are_refused(golden: Golden) -> None:
    state = golden.under("state/")
    side = golden.config["img_size"] // golden.config["patch_size"]
    table = sincos_2d((side, side), golden.config["embed_dim"], "row").unsqueeze(0)
    with pytest.raises(ValueError, match="position code"):
        imported(golden, state=state | {"momentum_encoder.pos_embed": table})
    del state["base_encoder.pos_embed"]
    with pytest.raises(ValueError, match=r"it has no base_encoder\.pos_embed"):
        imported(golden, state=state)


def test_twice_the_cosine_is_the_squared_distance_of_unit_vectors() -> None:
    golden, term = read("piece_infonce"), load("extrema").terms["mim"]
    pred, target = golden["in/q"].unsqueeze(1).requires_grad_(), golden["in/k"].unsqueeze(1)
    value = term.weight(0) * term.loss.build(TargetSpec(target.shape[-1]))(pred, target).mean()
    assert value.item() == pytest.approx(golden["extrema_byol"].item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, pred)
    assert_close(gradient.squeeze(1), golden["extrema_byol_grad"], rtol=0, atol=1e-7)


def test_the_schedule_of_the_momentum() -> None:
    golden = read("piece_momentum_schedules")
    setting = golden.json("meta")["extrema"]
    decay: Any = load("extrema", [f"teacher.decay.start={setting['ema_momentum']}"]).terms["mim"].teacher
    ours = [decay.decay(epoch / setting["epochs"]) for epoch in golden["extrema/epoch"].tolist()]
    assert ours == pytest.approx(golden["extrema/momentum"].tolist(), abs=1e-9)
    assert load("extrema").terms["mim"].teacher == decay, "the published settings are the recipe's"


def test_the_trunk_is_the_cores() -> None:
    trunk: Any = load("extrema").student
    assert trunk.trunk.component is plugins()["students"]["vit"]
