"""SIM's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from unimim import Recipe
from unimim.importers import BLOCK, ENCODER, UNTOLD, Importer, count, encoder, need, ratio
from unimim.layers import sincos_2d

STUDENT = {name: ours.replace("student.", "student.vit.") for name, ours in ENCODER.items() if name[:4] != "norm"}
NORMED = r"(norm[12])\.bn\.(weight|bias|running_mean|running_var|num_batches_tracked)"


def _head(prefix: str, at: str) -> dict[str, str]:
    """Rules for what the head and its momentum copy share."""
    blocks = rf"{prefix}projector_decoder_blocks\.(\d+)\."
    return {
        rf"{prefix}decoder_embed\.(weight|bias)": rf"{at}embed.\1",
        blocks + BLOCK: rf"{at}projector.\1.\2",
        blocks + NORMED: rf"{at}projector.\1.\2.\3",
    }


class SIMImporter(Importer):
    """Official SIM pre-training checkpoints (OpenGVLab/Siamese-Image-Modeling @ bbdec30)."""

    name = "sim"
    recipe = "sim"
    rules: ClassVar = (
        STUDENT
        | {f"mm_{name}": f"teachers.mim.copy.{ours}" for name, ours in STUDENT.items()}
        | _head("", "branches.mim.head.")
        | _head("mm_", "teachers.mim.copy.head.")
        | {
            r"mask_token": "branches.mim.head.mask_token",
            r"decoder_pos_mlp\.(weight|bias)": r"branches.mim.head.relative.\1",
            rf"predictor_decoder_blocks\.(\d+)\.{BLOCK}": r"branches.mim.head.predictor.\1.\2",
            rf"predictor_decoder_blocks\.(\d+)\.{NORMED}": r"branches.mim.head.predictor.\1.\2.\3",
            r"decoder_pred\.(weight|bias)": r"branches.mim.head.proj.\1",
        }
    )
    ignored: ClassVar = {r"mm_mask_token": "the momentum teacher sees whole images and never shows it"}
    prediction = "decoder_pred.bias"
    notes = (
        "downstream work uses the student (official name blocks), not its momentum copy (mm_blocks)",
        "the tensors do not tell the numbers of heads (taken from published models of these widths), eps, nor the pixels' mean "
        "and std (ImageNet's as in the recipe)",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        sizes = encoder(state)
        del sizes["student.qkv_bias"]
        if "decoder_embed.weight" not in state:
            return sizes
        need(state, "predictor_decoder_blocks.0.mlp.fc1.weight")
        dim = len(state["decoder_embed.weight"])
        head = {
            "dim": dim,
            "projector_depth": count(state, "projector_decoder_blocks"),
            "predictor_depth": count(state, "predictor_decoder_blocks"),
            "num_heads": 16 if dim == 768 else UNTOLD,
            "mlp_ratio": ratio(len(state["predictor_decoder_blocks.0.mlp.fc1.weight"]), dim),
        }
        return (
            sizes
            | {f"terms.mim.head.{key}": value for key, value in head.items()}
            | {"terms.mim.teacher.head_dim": dim}
        )

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """The class token's row of both tables is zero, so `prefix` is the class token alone."""
        student, head = recipe.student.geometry, recipe.terms["mim"].head
        widths = {"pos_embed": student.dim, "decoder_pos_embed": getattr(head, "dim", student.dim)}
        return {name: _table(student.grid, dim) for name, dim in widths.items()}


def _table(grid: tuple[int, int], dim: int) -> Tensor:
    """(1, 1 + N, dim)"""
    return torch.cat([torch.zeros(1, dim), sincos_2d(grid, dim, "row")]).unsqueeze(0)
