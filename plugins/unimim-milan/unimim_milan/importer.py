"""MILAN's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from unimim import Recipe
from unimim.importers import DECODER, ENCODER, Importer, decoder, decoder_positions, encoder, need
from unimim.layers import sincos_2d


class MILAN(Importer):
    """Official MILAN pre-training checkpoints (zejiangh/MILAN @ 7dcfe0f)."""

    name = "milan"
    recipe = "milan"
    rules: ClassVar = {
        **ENCODER,
        **DECODER,
        r"decoder_blocks\.(\d+)\.attn\.(q|kv)\.(weight|bias)": r"branches.mim.head.blocks.\1.attn.\2.\3",
    }
    prediction = "decoder_pred.bias"
    notes = (
        "the tensors do not tell the number of heads (taken from published models of this width), the pixels' mean and std, "
        "eps, nor the CLIP model that taught (ViT-B/16 for both published sizes)",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        need(state, "pos_embed")
        sizes = {**encoder(state), **decoder(state)}
        if self.prediction in state:  # the weight that makes a mean over the predicted numbers their sum
            sizes["terms.mim.weight"] = float(len(state[self.prediction]))
        return sizes

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """The class token's row of both tables is zero."""
        geometry = recipe.student.geometry
        code = torch.cat([torch.zeros(1, geometry.dim), sincos_2d(geometry.grid, geometry.dim)])
        return {"pos_embed": code.unsqueeze(0), "decoder_pos_embed": decoder_positions(recipe)}
