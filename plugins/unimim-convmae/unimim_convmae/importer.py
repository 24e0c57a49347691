"""ConvMAE's checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from unimim import Recipe
from unimim.importers import BLOCK, DECODER, UNTOLD, Importer, count, decoder, decoder_positions, need, ratio
from unimim.layers import sincos_2d

CONV_BLOCK = r"(\d+)\.((?:norm1|norm2|conv1|conv2|attn|mlp\.fc1|mlp\.fc2)\.(?:weight|bias))"
POINTWISE = r"blocks[12]\.\d+\.(?:conv1|conv2|mlp\.fc1|mlp\.fc2)\.weight"
EMBED = r"((?:proj|norm)\.(?:weight|bias))"


class ConvMAE(Importer):
    """Official ConvMAE pre-training checkpoints (Alpha-VL/ConvMAE @ 4c97b4c)."""

    name = "convmae"
    recipe = "convmae"
    rules: ClassVar = DECODER | {
        rf"patch_embed1\.{EMBED}": r"student.embeds.0.\1",
        rf"patch_embed2\.{EMBED}": r"student.embeds.1.\1",
        rf"patch_embed3\.{EMBED}": r"student.embeds.2.\1",
        r"patch_embed4\.(weight|bias)": r"student.proj.\1",
        rf"blocks1\.{CONV_BLOCK}": r"student.stages.0.\1.\2",
        rf"blocks2\.{CONV_BLOCK}": r"student.stages.1.\1.\2",
        rf"blocks3\.(\d+)\.{BLOCK}": r"student.blocks.\1.\2",
        r"stage1_output_decode\.(weight|bias)": r"student.fusions.0.\1",
        r"stage2_output_decode\.(weight|bias)": r"student.fusions.1.\1",
        r"norm\.(weight|bias)": r"student.norm.\1",
    }
    prediction = "decoder_pred.bias"
    complete = "fine-tuned models have neither decoder nor fusion; take the pre-training checkpoint"
    notes = (
        "the tensors do not tell the number of heads (taken from the published model of this width), the pixels' mean and "
        "std, eps, nor whether the target was normalized (norm)",
    )

    def adapt(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The 1 x 1 convolutions of a block are matrices here: (D, C, 1, 1) -> (D, C)."""
        return {name: x.flatten(1) if re.fullmatch(POINTWISE, name) else x for name, x in state.items()}

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        need(state, "pos_embed", "patch_embed1.proj.weight", "patch_embed2.proj.weight", "stage1_output_decode.weight")
        need(state, *(f"blocks{stage}.0.mlp.fc1.weight" for stage in (1, 2, 3)))
        first, channels, kernel, _ = state["patch_embed1.proj.weight"].shape
        second, dim = len(state["patch_embed2.proj.weight"]), len(state["stage1_output_decode.weight"])
        side = math.isqrt(state["pos_embed"].shape[1])
        hidden = [len(state[f"blocks{stage}.0.mlp.fc1.weight"]) for stage in (1, 2, 3)]
        sizes = {
            "patch_size": 4 * kernel,
            "image_size": 4 * kernel * side if side**2 == state["pos_embed"].shape[1] else UNTOLD,
            "channels": channels,
            "conv_dims": [first, second],
            "conv_depths": [count(state, "blocks1"), count(state, "blocks2")],
            "conv_mlp_ratios": [ratio(hidden[0], first), ratio(hidden[1], second)],
            "dim": dim,
            "depth": count(state, "blocks3"),
            "num_heads": 12 if dim == 768 else UNTOLD,
            "mlp_ratio": ratio(hidden[2], dim),
        }
        pixels = {"mean": UNTOLD, "std": UNTOLD} if channels != 3 else {}
        told = {f"student.{key}": value for key, value in (sizes | pixels).items()}
        return told | {f"terms.mim.teacher.{key}": UNTOLD for key in pixels} | decoder(state)

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        geometry = recipe.student.geometry
        return {
            "pos_embed": sincos_2d(geometry.grid, geometry.dim).unsqueeze(0),
            "decoder_pos_embed": decoder_positions(recipe),
        }
