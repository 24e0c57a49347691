"""CAE's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from unimim import Recipe
from unimim.importers import BLOCK, ENCODER, UNTOLD, Importer, count, encoder, need, under
from unimim.layers import sincos_2d

HEADS = {768: 12, 1024: 16}
"""Attention heads of the published encoders, by width."""
REGRESSOR = {
    r"gamma_([12])_cross": r"ls\2.gamma",
    r"norm1_([qkv])\.(weight|bias)": r"norm_\2.\3",
    r"norm2_cross\.(weight|bias)": r"norm2.\2",
    r"cross_attn\.([qv])_bias": r"attn.\2.bias",
    r"cross_attn\.(q|k|v|proj)\.(weight|bias)": r"attn.\2.\3",
    r"mlp_cross\.(fc1|fc2)\.(weight|bias)": r"mlp.\2.\3",
}


class CAEImporter(Importer):
    """Official CAE pre-training checkpoints (Atten4Vis/CAE @ a7fd162)."""

    name = "cae"
    recipe = "cae"
    rules: ClassVar = (
        under("encoder", ENCODER | {r"blocks\.(\d+)\.gamma_([12])": r"student.blocks.\1.ls\2.gamma"})
        | {
            r"encoder_to_regresser\.(weight|bias)": r"student.project.0.\1",
            r"encoder_to_regresser_norm\.(weight|bias)": r"student.project.1.\1",
            r"mask_token": "student.mask_token",
            r"regresser\.norm\.(weight|bias)": r"student.regressor_norm.\1",
        }
        | {
            rf"regresser\.regressor_blocks\.(\d+)\.{name}": rf"student.regressor.\1.{ours}"
            for name, ours in REGRESSOR.items()
        }
        | {
            rf"decoder\.decoder_blocks\.(\d+)\.{BLOCK}": r"branches.mim.head.blocks.\1.\2",
            r"decoder\.decoder_blocks\.(\d+)\.gamma_([12])": r"branches.mim.head.blocks.\1.ls\2.gamma",
            r"decoder\.norm\.(weight|bias)": r"branches.mim.head.norm.\1",
            r"decoder\.head\.(weight|bias)": r"branches.mim.head.proj.\1",
        }
    )
    ignored: ClassVar = {r"alignment_encoder\..+": "equal to the encoder's, which is the teacher"}
    prediction = "decoder.head.bias"
    notes = (
        "the tokenizer is another file; without terms.mim.teacher.weights=encoder.pkl the teacher is random, so evaluate or "
        "export the student but do not go on training",
        "the tensors do not tell the numbers of heads (taken from published models of these widths), eps, nor the pixels' mean "
        "and std (ImageNet's as in the recipe)",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        need(state, "mask_token", "regresser.regressor_blocks.0.cross_attn.q.weight", "encoder.blocks.0.gamma_1")
        _same_encoder(state)
        sizes = encoder(state, "encoder.")
        del sizes["student.qkv_bias"]
        width, queries = state["mask_token"].shape[-1], len(state["regresser.regressor_blocks.0.cross_attn.q.weight"])
        if queries != width:
            raise ValueError(
                f"the regressor projects {width} numbers to {queries}: a width that its heads do not divide "
                f"(--decoder_embed_dim beside 12 heads), which student cae does not build"
            )
        others = 12 if width == 768 else UNTOLD
        sizes |= {
            "student.num_heads": HEADS.get(sizes["student.dim"], UNTOLD),
            "student.regressor_dim": width,
            "student.regressor_depth": count(_part(state, "regresser"), "regressor_blocks"),
            "student.regressor_heads": others,
        }
        decoder = _part(state, "decoder")
        if decoder:
            need(decoder, "head.bias")
            sizes |= {
                "terms.mim.teacher.vocab_size": len(decoder["head.bias"]),
                "terms.mim.head.depth": count(decoder, "decoder_blocks"),
                "terms.mim.head.num_heads": others,
                "terms.mim.head.mlp_ratio": sizes["student.mlp_ratio"],
            }
        return sizes

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """Both position tables, with the class token's row of zeros."""
        student: Any = recipe.student
        return {
            r"encoder\.pos_embed": _table(student.geometry.grid, student.dim),
            r"rd_pos_embed": _table(student.geometry.grid, student.regressor_dim),
        }


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under `name`., without it."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}


def _table(grid: tuple[int, int], dim: int) -> Tensor:
    return torch.cat([torch.zeros(1, dim), sincos_2d(grid, dim, "row")]).unsqueeze(0)


def _same_encoder(state: Mapping[str, Tensor]) -> None:
    """ValueError if the alignment encoder is not the encoder, which it is since the first step."""
    for name in state:
        twin = name.replace("alignment_encoder.", "encoder.")
        if name != twin and not (twin in state and torch.equal(state[name], state[twin])):
            raise ValueError(
                f"{name} differs from {twin}: this alignment encoder is no copy of the encoder, as CAE's is"
            )
