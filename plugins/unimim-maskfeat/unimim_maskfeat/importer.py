"""MaskFeat's checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from unimim import Recipe
from unimim.importers import ENCODER, Importer, encoder, need

SOBEL = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
NUM_BINS = 9


class MaskFeat(Importer):
    """Official MaskFeat pre-training checkpoints of plain ViTs, HOG targets (facebookresearch/SlowFast @ 287ec00)."""

    name = "maskfeat"
    recipe = "maskfeat"
    rules: ClassVar = {name: ours for name, ours in ENCODER.items() if not name.startswith("norm")} | {
        r"mask_token": "student.mask_token",
        r"pos_embed": "student.pos_embed",
        r"pred_head\.transforms\.0\.0\.(weight|bias)": r"student.norm.\1",
        r"pred_head\.projections\.0\.(weight|bias)": r"branches.mim.head.proj.\1",
    }
    prediction = "pred_head.projections.0.bias"
    complete = "fine-tuned files have none; the pre-training files are named in1k_VIT_*_MaskFeat_PT_*.pyth"
    notes = (
        f"the tensors do not tell the number of heads (taken from published models of this width), the pixels' mean and std, "
        f"eps, nor the number of bins ({NUM_BINS} as in the official code)",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        need(state, "pos_embed", self.prediction)
        sizes = encoder(state)
        return sizes | {"terms.mim.teacher.cell": cell(state["patch_embed.proj.weight"], len(state[self.prediction]))}

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """The filters of the official target; ours are in code."""
        filters = SOBEL.expand(recipe.student.geometry.channels, 1, 3, 3)
        return {r"hogs\.0\.weight_x": filters, r"hogs\.0\.weight_y": filters.mT}


def cell(patches: Tensor, width: int) -> int:
    """The cell in pixels whose histograms under a patch are `width` numbers; patches (D, C, p, q) embeds them."""
    _, channels, height, across = patches.shape
    area = height * across * channels * NUM_BINS // width if width else 0
    side = math.isqrt(area)
    if not side or height % side or across % side or channels * NUM_BINS * height * across != width * side**2:
        raise ValueError(
            f"predictions of {width} numbers are not histograms of {NUM_BINS} bins of {channels} channels in the cells of a "
            f"{height}x{across} patch; only HOG targets are read"
        )
    return side
