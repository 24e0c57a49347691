"""BootMAE's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from unimim import Recipe
from unimim.importers import ENCODER, UNTOLD, Importer, count, encoder, need, ratio
from unimim.layers import sincos_2d

SPLIT = re.compile(r"((?:.+\.)?decode_blocks(?:_1)?\.\d+\.(?:attn|c_attn)\.)(qkv\.weight|kv\.weight|q_bias|v_bias)")
PARTS = {
    "qkv.weight": ("q.weight", "k.weight", "v.weight"),
    "kv.weight": ("k.weight", "v.weight"),
    "q_bias": ("q.bias",),
    "v_bias": ("v.bias",),
}
"""Official tensors of a decoder's attention, and ours, which are equal parts of them."""


def decoder_rules(term: str, tail: str) -> dict[str, str]:
    """{official name, a regular expression: our name} of the decoder whose official names end in `tail`."""
    head, block = f"branches.{term}.head", rf"decode_blocks{tail}\.(\d+)"
    ours = rf"{head}.blocks.\1"
    return {
        rf"{block}\.norm1\.(weight|bias)": rf"{ours}.norm.\2",
        rf"{block}\.attn\.(q|k|v|proj)\.(weight|bias)": rf"{ours}.attn.\2.\3",
        rf"{block}\.norm3\.(weight|bias)": rf"{ours}.inject.norm1.\2",
        rf"{block}\.norm4\.(weight|bias)": rf"{ours}.inject.attn.norm.\2",
        rf"{block}\.c_attn\.(q|k|v|proj)\.(weight|bias)": rf"{ours}.inject.attn.attn.\2.\3",
        rf"{block}\.norm2\.(weight|bias)": rf"{ours}.inject.norm2.\2",
        rf"{block}\.mlp\.(fc1|fc2)\.(weight|bias)": rf"{ours}.inject.mlp.\2.\3",
        rf"decode_norm{tail}\.(weight|bias)": rf"{head}.norm.\1",
        rf"down{tail}\.(weight|bias)": rf"{head}.embed.\1",
        rf"mask_token{tail}": f"{head}.mask_token",
    }


class BootMAE(Importer):
    """Official BootMAE pre-training checkpoints (LightDXY/BootMAE @ d604b18)."""

    name = "bootmae"
    recipe = "bootmae"
    rules: ClassVar = (
        ENCODER
        | decoder_rules("pixels", "")
        | {r"lm_head\.proj\.(weight|bias)": r"branches.pixels.head.proj.\1"}
        | decoder_rules("features", "_1")
        | {r"lm_head_1\.(weight|bias)": r"branches.features.head.proj.\1"}
    )
    prediction: ClassVar = {"features": "lm_head_1.bias", "pixels": "lm_head.proj.bias"}
    momentum = "model_ema"
    taught = "features"
    notes = (
        "official fine-tuning and linear probes load `model`, the student; model_ema is its momentum teacher",
        "the tensors do not tell which blocks are injected (the first for pixels, the last for features, as published), the "
        "numbers of heads (taken from published models of this width; the decoders have as many), the pixels' mean and std "
        "(0.5), eps, nor the schedules: published files are of epoch 800 of 801",
    )

    def adapt(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Keys and values apart from queries; the transposed convolution of pixels as the linear layer that it is.

        Its bias, one a channel, becomes one a number: of a gradient that is not the gradient, but the sum of it is.
        """
        adapted: dict[str, Tensor] = {}
        for name, tensor in state.items():
            found = SPLIT.fullmatch(name)
            if found:
                parts = PARTS[found[2]]
                adapted |= {found[1] + part: piece for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True)}
            elif name.endswith("lm_head.proj.weight"):  # (D, C, p, q)
                adapted[name] = tensor.permute(2, 3, 1, 0).flatten(0, 2)
            elif name.endswith("lm_head.proj.bias"):
                weight = state.get(name.removesuffix("bias") + "weight")
                adapted[name] = tensor if weight is None else tensor.repeat(weight[0, 0].numel())
            else:
                adapted[name] = tensor
        return adapted

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        need(state, "pos_embed")
        sizes = encoder(state)
        last = sizes["student.depth"] - 1
        sizes |= {"terms.features.teacher.layers": [last], "terms.features.head.inject": last}
        if sizes["student.channels"] != 3:
            pixels = {"teacher.mean": UNTOLD, "teacher.std": UNTOLD, "norm.channels": sizes["student.channels"]}
            sizes |= {f"terms.pixels.{key}": value for key, value in pixels.items()}
        for term, tail in (("pixels", ""), ("features", "_1")):
            if f"down{tail}.weight" not in state:
                continue
            dim, blocks = len(state[f"down{tail}.weight"]), f"decode_blocks{tail}"
            need(state, f"{blocks}.0.mlp.fc1.weight")
            head = {"dim": dim, "depth": count(state, blocks), "num_heads": sizes["student.num_heads"]}
            head["mlp_ratio"] = ratio(len(state[f"{blocks}.0.mlp.fc1.weight"]), dim)
            sizes |= {f"terms.{term}.head.{key}": value for key, value in head.items()}
        return sizes

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """Both position tables, also those of the momentum teacher; the class token's row is zero."""
        geometry, pixels = recipe.student.geometry, recipe.terms["pixels"].head
        tables = {"pos_embed": geometry.dim, "de_pos_embed": getattr(pixels, "dim", geometry.dim)}
        return {
            rf"(?:model_ema\.)?{name}": torch.cat(
                [torch.zeros(1, dim), sincos_2d(geometry.grid, dim, "row")]
            ).unsqueeze(0)
            for name, dim in tables.items()
        }
