"""A training step against zejiangh/MILAN @ 7dcfe0f: the real teacher class, its saliency, and the importer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from unimim_milan.attentive import Attentive
from unimim_milan.importer import MILAN

from unimim import Batch
from unimim.importers import Imported
from unimim.testing import Golden, check_gradients


def imported(golden: Golden, clip: Path) -> Imported:
    """mask=random stands in for the sampler: the stored mask is used as it is."""
    config = golden.config
    overrides = [
        f"student.num_heads={config['num_heads']}",
        f"student.eps={config['norm_eps']}",
        f"head.num_heads={config['decoder_num_heads']}",
        f"head.eps={config['norm_eps']}",
        "mask.name=random",
        f"mask.ratio={config['mask_ratio']}",
        f"teacher.model=local-dir:{clip}",
        *golden.unnormalized("student", "teacher"),
    ]
    return MILAN().read(golden.under("state/"), overrides)


def num_kept(golden: Golden) -> int:
    return int(golden["ids_shuffle"].shape[1] * (1 - golden.config["mask_ratio"]))


def batch(golden: Golden) -> Batch:
    """The stored images under the draw that stands in ids_shuffle."""
    hidden = torch.ones_like(golden["ids_shuffle"], dtype=torch.bool)
    hidden.scatter_(1, golden["ids_shuffle"][:, : num_kept(golden)], False)
    assert hidden.equal(golden["mask"])
    return golden.batch(hidden)


@pytest.fixture
def found(golden: Golden, official_clip: Path) -> Imported:
    return imported(golden, official_clip)


def test_the_loss(golden: Golden, found: Imported) -> None:
    assert found.objective()(batch(golden))["loss"].item() == pytest.approx(float(golden["loss"]), rel=1e-5)


def test_the_teacher_and_its_saliency_from_one_pass(golden: Golden, found: Imported) -> None:
    objective = found.objective()
    teacher: Any = objective.teachers["mim"]
    target = teacher(batch(golden).views["main"])
    features = torch.cat([target.image, target.tokens], 1)
    assert_close(features, golden["teacher_features"], rtol=0, atol=1e-4)
    assert_close(target.saliency, golden["importance"], rtol=0, atol=1e-6)
    assert_close(target.saliency, golden["teacher_attention"][:, 0, 1:], rtol=0, atol=1e-6)
    assert_close(target.saliency.sum(1) + golden["teacher_attention"][:, 0, 0], torch.ones(len(features)))


def test_targets_and_predictions(golden: Golden, found: Imported) -> None:
    objective: Any = found.objective()
    raw: list[Tensor] = []
    objective.terms["mim"].head.proj.register_forward_hook(lambda module, args, out: raw.append(out))
    (step,) = objective.predictions(batch(golden))["mim"]
    assert_close(step.target, golden["target"], rtol=0, atol=1e-6)
    assert_close(raw[0], golden["pred"], rtol=0, atol=1e-4)
    assert_close(step.preds[0], F.normalize(golden["pred"], dim=-1), rtol=0, atol=1e-5)


def test_encoded_tokens(golden: Golden, found: Imported) -> None:
    given, objective = batch(golden), found.objective()
    encoded = objective.student(given.views["main"], given.masks["main"][0])
    order = golden["ids_shuffle"][:, : num_kept(golden)].argsort(1)  # official: as drawn; ours: raster
    stored = golden["encoded"]
    expected = stored[:, 1:].gather(1, order.unsqueeze(-1).expand(-1, -1, stored.shape[-1]))
    assert_close(encoded.prefix, stored[:, :1], rtol=0, atol=1e-4)
    assert_close(encoded.tokens, expected, rtol=0, atol=1e-4)


def test_gradients(golden: Golden, found: Imported) -> None:
    objective = found.objective()
    objective(batch(golden))["loss"].backward()
    check_gradients(objective, found.loaded, golden.under("grad/"))


def test_every_stored_tensor_is_loaded_or_a_fixed_table(golden: Golden, found: Imported) -> None:
    assert {*found.ignored} == {"pos_embed", "decoder_pos_embed"}
    assert {*found.loaded.values()} | {*found.ignored} == {*golden.under("state/")}
    assert {name for name, _ in found.objective().named_parameters() if "teachers" not in name} == {*found.loaded}


def test_arrivals_in_the_stored_order_keep_the_stored_patches(golden: Golden) -> None:
    """Clocks of rates s that ring at times 1, 2, ... in the order of the draw: u = 1 - exp(-s t)."""
    importance, draw = golden["importance"], golden["ids_shuffle"]
    time = (draw.argsort(1) + 1).float()
    config = Attentive.Config(ratio=golden.config["mask_ratio"])
    (mask,) = config.build().from_saliency(importance, -torch.expm1(-importance * time))
    assert mask.hidden.equal(golden["mask"])


def test_the_importer_refuses_what_it_cannot_account_for(golden: Golden) -> None:
    state = golden.under("state/")
    overrides = [
        f"student.num_heads={golden.config['num_heads']}",
        f"head.num_heads={golden.config['decoder_num_heads']}",
    ]
    short = {name: tensor for name, tensor in state.items() if name != "decoder_blocks.0.attn.kv.bias"}
    with pytest.raises(ValueError, match=r"branches.mim.head.blocks.0.attn.kv.bias"):
        MILAN().read(short, overrides)
    with pytest.raises(ValueError, match=r"decoder_pos_embed is not the fixed table"):
        MILAN().read(state | {"decoder_pos_embed": state["decoder_pos_embed"] + 0.1}, overrides)
    bare = {name: tensor for name, tensor in state.items() if "decoder" not in name and name != "mask_token"}
    with pytest.raises(ValueError, match="allow a missing head"):
        MILAN().read(bare, overrides)
    alone = MILAN().read(bare, overrides, allow_missing_head=True)
    assert {*alone.loaded.values()} == {*bare} - {"pos_embed"}


def test_the_importer_sets_the_weight_to_the_width_of_the_predictions(golden: Golden, found: Imported) -> None:
    assert found.recipe.terms["mim"].weight(0.0) == golden["pred"].shape[-1]
