"""Official-looking state dicts, made from unimim's own by the official names, written out here independently."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from unimim import Objective, load
from unimim.layers.positions import relative_index, sincos_2d

NAMES = {
    r"student\.prefix": "cls_token",
    r"student\.shared_bias\.table": "rel_pos_bias.relative_position_bias_table",
    r"student\.block_bias\.(\d+)\.table": r"blocks.\1.attn.relative_position_bias_table",
    r"student\.blocks\.(\d+)\.ls(\d)\.gamma": r"blocks.\1.gamma_\2",
    r"student\.(.*)": r"\1",
}
HEADS = {
    "mae": {
        r"branches\.mim\.head\.embed\.(.*)": r"decoder_embed.\1",
        r"branches\.mim\.head\.mask_token": "mask_token",
        r"branches\.mim\.head\.blocks\.(.*)": r"decoder_blocks.\1",
        r"branches\.mim\.head\.norm\.(.*)": r"decoder_norm.\1",
        r"branches\.mim\.head\.proj\.(.*)": r"decoder_pred.\1",
    },
    "beit": {r"branches\.mim\.head\.proj\.(.*)": r"lm_head.\1"},
    "data2vec": {r"branches\.mim\.head\.proj\.(.*)": r"lm_head.\1"},
}
SMALL = ["student.image_size=32", "student.patch_size=8", "student.dim=32", "student.depth=2", "student.num_heads=2"]
BASES = {
    "mae": ["head.dim=16", "head.depth=1", "head.num_heads=2"],
    "beit": [
        "teacher.vocab_size=10",
        "teacher.num_hidden=4",
        "mask.count=6",
        "mask.min_block=2",
        "student.drop_path=0",
    ],
    "data2vec": ["teacher.layers=[0,1]", "mask.count=6", "mask.min_block=2", "student.drop_path=0"],
}


def official_state(objective: Objective, kind: str) -> dict[str, Tensor]:
    """Names of the official code, with its fixed tables; a momentum copy under "model_ema."."""
    rules = HEADS[kind] | NAMES
    grid, state = objective.student.geometry.grid, {}
    for ours, tensor in objective.state_dict().items():
        part = "model_ema." if ours.startswith("teachers.mim.copy.") else ""
        name = ours.removeprefix("teachers.mim.copy.")
        for pattern, result in rules.items():
            if (part or not name.startswith("teachers.")) and re.fullmatch(pattern, name):
                official = part + re.sub(f"^{pattern}$", result, name)
                state[official] = tensor
                if official.endswith("relative_position_bias_table"):
                    state[official.replace("bias_table", "index")] = relative_index(grid, 1)
                break
    if kind == "mae":
        for table, dim in (
            ("pos_embed", objective.student.dim),
            ("decoder_pos_embed", len(state["decoder_norm.weight"])),
        ):
            state[table] = torch.cat([torch.zeros(1, dim), sincos_2d(grid, dim)])[None]
    return state


@pytest.fixture
def official() -> Callable[..., tuple[Objective, dict[str, Tensor]]]:
    """official(kind, overrides) is a small objective of that kind with random weights, and its official state dict."""

    def make(kind: str, overrides: Sequence[str] = ()) -> tuple[Objective, dict[str, Tensor]]:
        torch.manual_seed(0)
        objective = Objective(load(kind, [*SMALL, *BASES[kind], *overrides]))
        for tensor in objective.state_dict().values():
            tensor.normal_(std=0.1)
        return objective, official_state(objective, kind)

    return make
