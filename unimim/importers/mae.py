"""MAE's checkpoints, and the decoder that others took over from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..layers.positions import sincos_2d
from ..recipe import Recipe
from .base import UNTOLD, Importer, need
from .vit import BLOCK, ENCODER, count, encoder, ratio

DECODER = {
    r"mask_token": "branches.mim.head.mask_token",
    r"decoder_embed\.(weight|bias)": r"branches.mim.head.embed.\1",
    rf"decoder_blocks\.(\d+)\.{BLOCK}": r"branches.mim.head.blocks.\1.\2",
    r"decoder_norm\.(weight|bias)": r"branches.mim.head.norm.\1",
    r"decoder_pred\.(weight|bias)": r"branches.mim.head.proj.\1",
}
"""Rules for the decoder, which ConvMAE, HiViT and GreenMIM name as MAE does."""


def decoder(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """{recipe key: value} of the decoder; empty if the file has none."""
    if "decoder_embed.weight" not in state:
        return {}
    dim = len(state["decoder_embed.weight"])
    head = {"dim": dim, "depth": count(state, "decoder_blocks"), "num_heads": 16 if dim == 512 else UNTOLD}
    if head["depth"]:
        head["mlp_ratio"] = ratio(len(state["decoder_blocks.0.mlp.fc1.weight"]), dim)
    return {f"terms.mim.head.{key}": value for key, value in head.items()}


def decoder_positions(recipe: Recipe) -> Tensor:
    """(1, P + N, D) the decoder's fixed table; zero for the class token, if there is one."""
    head: Any = recipe.terms["mim"].head
    return positions(recipe, head.dim)


def positions(recipe: Recipe, dim: int) -> Tensor:
    code = sincos_2d(recipe.student.geometry.grid, dim)
    return torch.cat([torch.zeros(recipe.student.num_prefix, dim), code]).unsqueeze(0)


class MAE(Importer):
    """Official MAE pre-training checkpoints (facebookresearch/mae @ efb2a80), full or encoder only."""

    name = "mae"
    recipe = "mae"
    rules: ClassVar = ENCODER | DECODER
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
        return sizes | decoder(state)

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """The class token's row of both tables is zero, so `prefix` is the class token alone."""
        return {
            "pos_embed": positions(recipe, recipe.student.geometry.dim),
            "decoder_pos_embed": decoder_positions(recipe),
        }
