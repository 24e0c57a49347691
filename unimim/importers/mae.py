"""MAE's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..layers.positions import sincos_2d
from ..recipe import Recipe
from .base import UNTOLD, Importer, need
from .vit import BLOCK, ENCODER, count, encoder, ratio


class MAE(Importer):
    """Official MAE pre-training checkpoints (facebookresearch/mae @ efb2a80), full or encoder only."""

    name = "mae"
    recipe = "mae"
    rules: ClassVar = ENCODER | {
        r"mask_token": "branches.mim.head.mask_token",
        r"decoder_embed\.(weight|bias)": r"branches.mim.head.embed.\1",
        rf"decoder_blocks\.(\d+)\.{BLOCK}": r"branches.mim.head.blocks.\1.\2",
        r"decoder_norm\.(weight|bias)": r"branches.mim.head.norm.\1",
        r"decoder_pred\.(weight|bias)": r"branches.mim.head.proj.\1",
    }
    prediction = "decoder_pred.bias"
    complete = "the decoder is in the file whose name ends in _full.pth (mae_pretrain_vit_base_full.pth and so on)"
    notes = (
        "the tensors do not tell the number of heads (taken from published models of this width), the pixels' mean and std, "
        "eps, nor whether the target was normalized (norm; mae_visualize_* predict raw pixels: norm=identity)",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        need(state, "pos_embed")
        sizes = encoder(state)
        if sizes["student.channels"] != 3:
            sizes |= {"terms.mim.teacher.mean": UNTOLD, "terms.mim.teacher.std": UNTOLD}
        if "decoder_embed.weight" not in state:
            return sizes
        dim = len(state["decoder_embed.weight"])
        head = {"dim": dim, "depth": count(state, "decoder_blocks"), "num_heads": 16 if dim == 512 else UNTOLD}
        if head["depth"]:
            head["mlp_ratio"] = ratio(len(state["decoder_blocks.0.mlp.fc1.weight"]), dim)
        return sizes | {f"terms.mim.head.{key}": value for key, value in head.items()}

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """The class token's row of both tables is zero, so `prefix` is the class token alone."""
        grid = recipe.student.geometry.grid
        head: Any = recipe.terms["mim"].head
        widths = {"pos_embed": recipe.student.geometry.dim, "decoder_pos_embed": head.dim}
        return {
            name: torch.cat([torch.zeros(1, dim), sincos_2d(grid, dim)]).unsqueeze(0) for name, dim in widths.items()
        }
