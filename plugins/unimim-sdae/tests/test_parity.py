"""SdAE against AbrahamYabo/SdAE @ 2e08b31, through the importer, from stored images, masks and groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from unimim_sdae.importer import SdAE

from unimim import Batch, Mask, Progress, Schedule, load
from unimim.importers import Imported
from unimim.testing import Golden, check_gradients


def groups(golden: Golden) -> int | None:
    """Groups of the step; None for the official path without them."""
    found: int | None = golden.config["ncrop_loss"] if golden.config["shrink_num"] is not None else None
    return found


def imported(golden: Golden) -> Imported:
    config, number = golden.config, groups(golden)
    grouped = [
        "mask={name: random}" if number is None else f"mask.groups={number}",
        "loss=cosine" if number is None else f"loss.groups={number}",
        f"teacher.region={'full' if number is None else 'hidden'}",
    ]
    overrides = [
        *grouped,
        f"mask.ratio={config['mask_ratio']}",
        f"teacher.decay={config['momentum']}",
        f"student.num_heads={config['num_heads']}",
        f"student.drop_path={config['drop_path']}",
        f"student.eps={config['norm_eps']}",
        f"head.num_heads={config['decoder_num_heads']}",
        f"head.eps={config['norm_eps']}",
        *([] if config["norm_pix_loss"] else ["norm=identity"]),
    ]
    return SdAE().read(state(golden), [*overrides, *golden.unnormalized("student")])


def state(golden: Golden) -> dict[str, Tensor]:
    teacher = {f"model_teacher.{name}": tensor for name, tensor in golden.under("teacher_state/").items()}
    return golden.under("state/") | teacher


def batch(golden: Golden) -> Batch:
    """The stored images; a group is a run of the stored order of hidden patches."""
    given, drawn, number = golden.batch(), golden["ids_unkeep"], groups(golden)
    assert torch.ones_like(golden["mask"]).scatter(1, drawn, False).equal(~golden["mask"])
    mask = Mask.from_hidden(golden["mask"], drawn.shape[1])
    if number is not None:
        dealt = torch.arange(drawn.shape[1]).expand_as(drawn) // (drawn.shape[1] // number)
        mask = mask.grouped(torch.zeros_like(golden["mask"], dtype=torch.int64).scatter(1, drawn, dealt), number)
    return replace(given, masks={"main": (mask,)})


def drawn(golden: Golden, tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) as the official code lays them out: hidden ones (B G, M / G, D) in the order of the draw; (B M, D)
    in raster order without groups."""
    index = golden["ids_unkeep"] if groups(golden) else golden["ids_unkeep"].sort(1).values
    index = index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return tokens.gather(1, index).reshape(-1, *golden["target"].shape[1:])


def dense(golden: Golden, index: Tensor, tokens: Tensor) -> Tensor:
    place = index.unsqueeze(-1).expand_as(tokens)
    return torch.zeros(len(index), golden["mask"].shape[1], tokens.shape[-1]).scatter(1, place, tokens)


@pytest.fixture
def found(golden: Golden) -> Imported:
    return imported(golden)


def test_the_loss(golden: Golden, found: Imported) -> None:
    assert found.objective()(batch(golden))["loss"].item() == pytest.approx(float(golden["loss"]), rel=1e-5)


def test_targets_and_predictions(golden: Golden, found: Imported) -> None:
    objective, given = found.objective(), batch(golden)
    (step,) = objective.predictions(given)["mim"]
    assert step.query.index is not None
    for mine, stored in ((step.target, "target"), (step.preds[0], "pred")):
        assert_close(drawn(golden, dense(golden, step.query.index, mine)), golden[stored], rtol=0, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in objective.teachers.parameters())


def test_features_of_the_teacher(golden: Golden, found: Imported) -> None:
    given, teacher = batch(golden), found.objective().teachers["mim"]
    tokens = teacher(given.views["main"], given.masks["main"][0] if groups(golden) else None).tokens
    expected = golden["teacher_features"]
    if groups(golden) is None:
        assert_close(tokens, expected, rtol=0, atol=1e-4)
        return
    assert_close(drawn(golden, tokens), expected, rtol=0, atol=1e-4)
    assert (tokens[~golden["mask"]] == 0).all()


def test_predictions_everywhere(golden: Golden, found: Imported) -> None:
    objective, given = found.objective(), batch(golden)
    encoded = objective.student(given.views["main"], given.masks["main"][0])
    everywhere = objective.terms["mim"].query(given.masks["main"][0], given.views["main"])
    assert everywhere.index is not None
    index = torch.arange(golden["mask"].shape[1]).expand_as(golden["mask"])
    assert_close(
        objective.terms["mim"].head(encoded, replace(everywhere, index=index)), golden["pred_all"], rtol=0, atol=1e-4
    )


def test_encoded_tokens(golden: Golden, found: Imported) -> None:
    given, objective = batch(golden), found.objective()
    encoded = objective.student(given.views["main"], given.masks["main"][0])
    kept = golden["encoded"].shape[1] - 1
    order = golden["noise"].argsort(1)[:, :kept].argsort(1)  # official: as drawn; ours: raster
    expected = golden["encoded"][:, 1:].gather(1, order.unsqueeze(-1).expand_as(golden["encoded"][:, 1:]))
    assert_close(encoded.prefix, golden["encoded"][:, :1], rtol=0, atol=1e-4)
    assert_close(encoded.tokens, expected, rtol=0, atol=1e-4)


def test_gradients(golden: Golden, found: Imported) -> None:
    objective = found.objective()
    objective(batch(golden))["loss"].backward()
    check_gradients(objective, found.loaded, golden.under("grad/"))


def test_the_teacher_follows_at_the_end_of_an_epoch(golden: Golden, found: Imported) -> None:
    objective = found.objective()
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    objective.on_step_start(Progress(0, 10, 5))
    objective.on_step_end(Progress(0, 10, 5))
    assert all(tensor.equal(before[name]) for name, tensor in objective.state_dict().items())
    objective.on_epoch_end(Progress(4, 10, 5))
    ours, names = objective.state_dict(), {official: name for name, official in found.loaded.items()}
    after = golden.under("teacher_after/")
    assert after
    for official, value in after.items():
        assert_close(ours[names[f"model_teacher.{official}"]], value, rtol=0, atol=1e-6)
    decay, positions = golden.config["momentum"], "teachers.mim.copy.student.pos_embed"
    pulled = decay * golden["teacher_state/pos_embed"] + (1 - decay) * golden["state/pos_embed"]
    assert_close(ours[positions], pulled, rtol=0, atol=1e-6)
    assert not ours[positions].equal(before[positions])


def test_every_stored_tensor_is_loaded_or_a_fixed_table(golden: Golden, found: Imported) -> None:
    assert {*found.ignored} == {"pos_embed", "decoder_pos_embed"}
    assert {*found.loaded.values()} | {*found.ignored} == {*state(golden)}
    assert {*found.objective().state_dict()} == {*found.loaded}


def test_the_axis_of_the_cosine(golden: Golden, found: Imported) -> None:
    """The usual cosine, over channels, is another loss for a grouped step, and the official one without groups."""
    usual = load(found.recipe.data(), ["loss=cosine"])
    difference = replace(found, recipe=usual).objective()(batch(golden))["loss"].item() - float(golden["loss"])
    assert (abs(difference) > 1e-3) == (groups(golden) is not None)


def test_the_schedule_of_the_decay(piece: Callable[[str], Golden]) -> None:
    golden = piece("momentum_schedules")
    setting: dict[str, Any] = golden.json("meta")["sdae"]
    assert setting["warmup_epochs"] == 0
    ours = Schedule(start=setting["base_value"], end=setting["final_value"], shape="cosine")
    per_epoch, total = setting["niter_per_ep"], setting["epochs"] * setting["niter_per_ep"]
    found = [ours(Progress(step, total, per_epoch).fraction) for step in golden["sdae/step"].tolist()]
    assert found == pytest.approx(golden["sdae/momentum"].tolist(), abs=1e-12)
    recipe: Any = load("sdae").terms["mim"].teacher
    assert recipe.decay == ours


def test_the_importer_refuses_what_it_cannot_account_for(golden: Golden) -> None:
    given = state(golden)
    heads = (f"{part}={golden.config[key]}" for part, key in HEADS.items())
    overrides = [*heads, f"mask.ratio={golden.config['mask_ratio']}"]
    student = {name: tensor for name, tensor in given.items() if not name.startswith("model_teacher.")}
    with pytest.raises(ValueError, match=r"it has no model_teacher.pos_embed"):
        SdAE().read(student, overrides)
    short = {name: tensor for name, tensor in given.items() if name != "model_teacher.norm.bias"}
    with pytest.raises(ValueError, match=r"1 missing: teachers.mim.copy.student.norm.bias"):
        SdAE().read(short, overrides)
    with pytest.raises(ValueError, match=r"of another shape: teachers.mim.copy.student.pos_embed"):
        SdAE().read(given | {"model_teacher.pos_embed": given["pos_embed"][:, 1:]}, overrides)
    with pytest.raises(ValueError, match=r"pos_embed is not the fixed table"):
        SdAE().read(given | {"pos_embed": given["model_teacher.pos_embed"]}, overrides)


HEADS = {"student.num_heads": "num_heads", "head.num_heads": "decoder_num_heads"}
