"""GreenMIM's checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from unimim import Recipe
from unimim.importers import DECODER, SWIN_ENCODER, SWIN_IGNORED, Importer, decoder, swin_encoder, under
from unimim.layers import sincos_2d

HEAD = "branches.mim.head."
ORDER = (
    "the official code trains its decoder with visible tokens at permuted positions; head=greenmim_decoder goes on as the "
    "file was trained (its decoder key says which decoder, if not the published one)"
)
UNTOLD = "the tensors do not tell the pixels' mean and std (ImageNet's as in the recipe), nor eps, nor the mask ratio"


class GreenMIM(Importer):
    """Official GreenMIM pre-training checkpoints of Swin (LayneH/GreenMIM @ b981012 and later)."""

    name = "greenmim"
    recipe = "greenmim"
    rules: ClassVar = under("encoder", SWIN_ENCODER) | DECODER
    ignored: ClassVar = under("encoder", SWIN_IGNORED)
    prediction = "decoder_pred.bias"
    notes = (
        ORDER,
        "code before b981012 merges patches in another order, which the tensors do not tell: importer greenmim-v1 "
        "is for its files, and the published ones are of that time",
        UNTOLD,
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        sizes = swin_encoder(state, "encoder.") | decoder(state)
        if "decoder_pos_embed" in state:
            stride = sizes["student.patch_size"] << (len(sizes["student.depths"]) - 1)
            sizes["student.image_size"] = math.isqrt(state["decoder_pos_embed"].shape[1]) * stride
        return sizes

    def place(self, name: str, recipe: Recipe) -> str:
        inside = recipe.terms["mim"].head.name == "greenmim_decoder"
        return name.replace(HEAD, f"{HEAD}decoder.") if inside else name

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        head: Any = recipe.terms["mim"].head
        dim = getattr(head, "decoder", head).dim
        return {"decoder_pos_embed": sincos_2d(recipe.student.geometry.grid, dim).unsqueeze(0)}


class GreenMIMv1(GreenMIM):
    """GreenMIM checkpoints trained before b981012 (2023-01-16), the published ones by their date among them."""

    name = "greenmim-v1"
    notes = (
        ORDER,
        "the first release (4beb99e) groups the tokens of the second and third stage by misplaced coordinates, so its "
        "encoder saw other windows there than Swin's, which it is fine-tuned with",
        UNTOLD,
    )

    def adapt(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Merged neighbours x00, x01, x10, x11, row before column in the index, to Swin's x00, x10, x01, x11."""
        merges = r"encoder\.layers\.\d+\.downsample\.(?:norm|reduction)\.(?:weight|bias)"
        return {name: _swapped(tensor) if re.fullmatch(merges, name) else tensor for name, tensor in state.items()}


def _swapped(x: Tensor) -> Tensor:
    """(..., 4 D): the second and the third quarter of the last axis change places."""
    first, second, third, fourth = x.chunk(4, -1)
    return torch.cat([first, third, second, fourth], -1)
