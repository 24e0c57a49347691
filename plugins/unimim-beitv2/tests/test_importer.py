"""Official-looking checkpoints of BEiT v2, through `convert` and by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unimim import Objective, load, plugins
from unimim.importers import convert
from unimim.layers import relative_index

SMALL = [
    *("student.image_size=32", "student.patch_size=8", "student.dim=32", "student.depth=3", "student.num_heads=2"),
    *("head.last=2", "student.drop_path=0", "mask.count=6", "mask.min_block=2"),
    "teacher={name: vqkd, dim: 8, depth: 1, num_heads: 2, num_codes: 16, code_dim: 4}",
]
NAMES = {
    r"student\.prefix": "cls_token",
    r"student\.shared_bias\.table": "rel_pos_bias.relative_position_bias_table",
    r"student\.block_bias\.(\d+)\.table": r"blocks.\1.attn.relative_position_bias_table",
    r"student\.blocks\.(\d+)\.ls(\d)\.gamma": r"blocks.\1.gamma_\2",
    r"student\.(.*)": r"\1",
    r"branches\.mim\.head\.proj\.(.*)": r"lm_head.\1",
    r"branches\.mim\.head\.norm\.(.*)": r"cls_pt_norm.\1",
    r"branches\.mim\.head\.branch\.(.*)": r"cls_pt_lm_head.\1",
    r"branches\.mim\.head\.block_bias\.(\d+)\.table": r"cls_pt_layers.\1.attn.relative_position_bias_table",
    r"branches\.mim\.head\.blocks\.(\d+)\.ls(\d)\.gamma": r"cls_pt_layers.\1.gamma_\2",
    r"branches\.mim\.head\.blocks\.(\d+)\.(.*)": r"cls_pt_layers.\1.\2",
}
"""Official names, written out here independently of the importer."""


def official(overrides: Sequence[str]) -> tuple[Objective, dict[str, Tensor]]:
    """A small objective with random weights, and its official state dict with the fixed tables."""
    torch.manual_seed(0)
    objective = Objective(load("beitv2", [*SMALL, *overrides]))
    for tensor in objective.state_dict().values():
        tensor.normal_(std=0.1)
    state: dict[str, Tensor] = {}
    for ours, tensor in objective.state_dict().items():
        for pattern, result in NAMES.items():
            if re.fullmatch(pattern, ours):
                state[re.sub(f"^{pattern}$", result, ours)] = tensor
                break
    tables = [name for name in state if name.endswith("bias_table")]
    index = relative_index(objective.student.geometry.grid, 1)
    return objective, state | {name.replace("bias_table", "index"): index for name in tables}


def read(state: dict[str, Tensor], *overrides: str) -> Any:
    return plugins()["importers"]["beitv2"]().read(state, ["student.drop_path=0", *SMALL[-3:], *overrides])


@pytest.mark.parametrize(
    ("overrides", "given"),
    [
        (["head.early=1"], ["head.early=1"]),
        (["head.early=0", "head.num_blocks=1", "head.shared=false"], ["head.early=0"]),
        (["head.early=2", "student.relative_positions=per_block", "student.layer_scale=null"], ["head.early=2"]),
        (["head=fc", "student.relative_positions=none", "student.positions=learned"], ["student.num_heads=2"]),
    ],
    ids=["shared", "own norm and linear layer", "own tables", "no branch"],
)
def test_every_tensor_finds_its_place(overrides: list[str], given: list[str]) -> None:
    objective, state = official(overrides)
    found = read(state, *given)
    assert {*found.loaded.values(), *found.ignored} == {*state}
    assert {*found.ignored.values()} <= {"fixed table, computed by unimim (largest difference 0)", "computed by unimim"}
    ours, theirs = found.objective().state_dict(), objective.state_dict()
    assert all(ours[name].equal(theirs[name]) for name in found.state)
    assert found.recipe.terms == objective.recipe.terms
    assert found.recipe.student == objective.recipe.student


def test_what_the_tensors_do_not_tell_is_asked_for() -> None:
    _, state = official(["head.early=1"])
    with pytest.raises(ValueError, match=r"do not tell head\.early; give head\.early=\.\.\."):
        read(state)


def test_a_damaged_or_foreign_branch_is_refused() -> None:
    _, state = official(["head.early=1"])
    without = {name: tensor for name, tensor in state.items() if name != "cls_pt_layers.1.mlp.fc2.bias"}
    with pytest.raises(ValueError, match=r"missing: branches\.mim\.head\.blocks\.1\.mlp\.fc2\.bias"):
        read(without, "head.early=1")
    _, own = official(["head.early=1", "student.relative_positions=per_block"])
    table = "cls_pt_layers.0.attn.relative_position_index"
    with pytest.raises(ValueError, match=rf"{table} is not the fixed table"):
        read(own | {table: own[table] + 1}, "head.early=1")


@pytest.mark.parametrize("key", ["model", "module"])
def test_converts_a_file(tmp_path: Path, key: str) -> None:
    objective, state = official(["head.early=1"])
    torch.save({key: state, "epoch": 1}, tmp_path / "beitv2.pth")
    done = convert(tmp_path / "beitv2.pth", "beitv2", tmp_path / "out", [*SMALL[-3:], "head.early=1"])
    assert len(done.loaded) == len(state) - 1
    assert "the tokenizer is another file" in str(done)
    assert done.recipe.student.geometry == objective.student.geometry


def test_published_models_need_no_word() -> None:
    """The 9th of 12 and the 21st of 24 blocks, heads by width, sizes by shape; on tensors without memory."""
    for name in ("beitv2", "beitv2-large"):
        recipe = load(name)
        with torch.device("meta"):
            student = recipe.student.build()
            head = recipe.terms["mim"].head.build(student, 8192)
        state: dict[str, Tensor] = {}
        parts = {"student.": student, "branches.mim.head.": head}
        for ours, tensor in [(p + n, t) for p, part in parts.items() for n, t in part.state_dict().items()]:
            pattern = next(pattern for pattern in NAMES if re.fullmatch(pattern, ours))
            state[re.sub(f"^{pattern}$", NAMES[pattern], ours)] = tensor
        found = plugins()["importers"]["beitv2"]().read(state)
        assert found.recipe.hash == recipe.hash
        assert len(found.loaded) == len(state)
