"""ExtreMA's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from unimim import Recipe
from unimim.importers import BLOCK, Importer, count, encoder, need, under
from unimim.layers import sincos_2d

BASE = "base_encoder"
RULES = {
    r"cls_token": "student.prefix",
    r"patch_embed\.proj\.(weight|bias)": r"student.trunk.patch_embed.proj.\1",
    rf"blocks\.(\d+)\.{BLOCK}": r"student.trunk.blocks.\1.\2",
    r"blocks_token\.(\d+)\.gamma_([12])": r"student.class_blocks.\1.ls\2.gamma",
    r"blocks_token\.(\d+)\.((?:norm1|norm2|attn\.(?:q|k|v|proj)|mlp\.fc[12])\.(?:weight|bias))": (
        r"student.class_blocks.\1.\2"
    ),
    r"norm\.(weight|bias)": r"student.norm.\1",
    r"head\.(\d+)\.(weight|bias)": r"branches.mim.head.projector.\1.\2",
}


class ExtreMAImporter(Importer):
    """Official ExtreMA pre-training checkpoints: encoder, momentum encoder and predictor (microsoft/ExtreMA @ bf30b64)."""

    name = "extrema"
    recipe = "extrema"
    rules: ClassVar = (
        RULES | under(BASE, RULES) | {r"predictor\.(\d+)\.(weight|bias)": r"branches.mim.head.predictor.\1.\2"}
    )
    prediction = f"{BASE}.head.6.bias"
    momentum = "momentum_encoder"
    notes = (
        "officially linear probes read the momentum encoder's class token (here teachers.mim.copy.student), and fine-tuning "
        "starts from the encoder (here student), without class attention, from the mean of its patches",
        "the tensors do not tell the number of heads (taken from published models of this width), the pixels' mean and std, "
        "eps, nor how much was masked",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        own = {key.removeprefix(f"{BASE}."): tensor for key, tensor in state.items() if key.startswith(f"{BASE}.")}
        need(state, f"{BASE}.pos_embed", f"{BASE}.blocks_token.0.attn.q.weight")
        # The shared rule counts positions beside a class token's, for which ExtreMA has none.
        sizes = encoder(own | {"pos_embed": F.pad(own["pos_embed"], (0, 0, 1, 0))})
        del sizes["student.qkv_bias"]
        sizes["student.class_depth"] = count(own, "blocks_token")
        if "head.6.bias" in own:
            sizes["terms.mim.teacher.head_dim"] = len(own["head.6.bias"])
            sizes["terms.mim.head.hidden"] = len(own["head.0.bias"])
        return sizes

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """The position table, of patches alone."""
        geometry = recipe.student.geometry
        return {r"(?:base|momentum)_encoder\.pos_embed": sincos_2d(geometry.grid, geometry.dim).unsqueeze(0)}
