"""HiViT's checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from unimim import Recipe
from unimim.importers import BLOCK, DECODER, UNTOLD, Importer, count, decoder, decoder_positions, need, ratio
from unimim.layers import relative_index

TABLE = "attn.relative_position_bias_table"


class HiViT(Importer):
    """Official HiViT pre-training checkpoints (zhangxiaosong18/hivit @ 2718339, self_supervised)."""

    name = "hivit"
    recipe = "hivit"
    rules: ClassVar = DECODER | {
        r"absolute_pos_embed": "student.pos_embed",
        r"patch_embed\.proj\.(weight|bias)": r"student.patch_embed.\1",
        r"patch_embed\.norm\.(weight|bias)": r"student.patch_norm.\1",
        rf"blocks\.(\d+)\.{BLOCK}": r"student.blocks.\1.\2",
        rf"blocks\.(\d+)\.{TABLE}": r"student.blocks.\1.attn.bias.table",
        r"blocks\.(\d+)\.(norm\.weight|norm\.bias|reduction\.weight)": r"student.blocks.\1.\2",
        r"norm\.(weight|bias)": r"student.norm.\1",
    }
    prediction = "decoder_pred.bias"
    complete = "fine-tuned models have neither decoder nor the norm of three scales; take the pre-training checkpoint"
    notes = (
        "the tensors do not tell the number of heads (taken from the published model of this width, unless there are relative "
        "positions), the pixels' mean and std, eps, nor whether the target was normalized (norm)",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        need(state, "absolute_pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
        merges = [n for n in range(count(state, "blocks")) if f"blocks.{n}.reduction.weight" in state]
        if len(merges) != 2:
            raise ValueError(
                f"not the expected kind of checkpoint: {len(merges)} patch merges in blocks, and HiViT has 2"
            )
        first, second = merges
        main = f"blocks.{second + 1}"
        need(state, f"{main}.mlp.fc1.weight")
        num_tokens, dim = state["absolute_pos_embed"].shape[1:]
        width, channels, kernel, _ = state["patch_embed.proj.weight"].shape
        side, table = math.isqrt(num_tokens), state.get(f"{main}.{TABLE}")
        sizes = {
            "patch_size": 4 * kernel,
            "image_size": 4 * kernel * side if side**2 == num_tokens else UNTOLD,
            "channels": channels,
            "stem_depths": [first, second - first - 1],
            "stem_mlp_ratio": ratio(len(state["blocks.0.mlp.fc1.weight"]), width),
            "dim": dim,
            "depth": count(state, "blocks") - second - 1,
            "num_heads": table.shape[1] if table is not None else 8 if dim == 512 else UNTOLD,
            "mlp_ratio": ratio(len(state[f"{main}.mlp.fc1.weight"]), dim),
            "relative_positions": "none" if table is None else "per_block",
        }
        pixels = {"mean": UNTOLD, "std": UNTOLD} if channels != 3 else {}
        told = {f"student.{key}": value for key, value in (sizes | pixels).items()}
        return told | {f"terms.mim.teacher.{key}": UNTOLD for key in pixels} | decoder(state)

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        return {
            "decoder_pos_embed": decoder_positions(recipe),
            "relative_position_index": relative_index(recipe.student.geometry.grid, num_prefix=0),
        }
