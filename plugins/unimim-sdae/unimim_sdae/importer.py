"""SdAE's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from unimim import Recipe
from unimim.importers import DECODER, ENCODER, Importer, decoder, decoder_positions, encoder, need
from unimim.layers import sincos_2d


class SdAE(Importer):
    """Pre-training checkpoints of SdAE's official code (AbrahamYabo/SdAE @ 2e08b31), student and momentum teacher."""

    name = "sdae"
    recipe = "sdae"
    rules: ClassVar = {
        **ENCODER,
        **DECODER,
        r"model_teacher\.pos_embed": "teachers.mim.copy.student.pos_embed",
    }
    prediction = "decoder_pred.bias"
    momentum = "model_teacher"
    notes = (
        "the student is the part `model`, which the official fine-tuning loads by default; `model_teacher` is the target only",
        "the tensors do not tell the number of heads (taken from published models of this width), the pixels' mean and std, "
        "eps, nor the groups of hidden patches and the axis of the cosine (3 and tokens, as in the official README)",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """ValueError if there is no teacher: its positions are its own."""
        need(state, "pos_embed", "model_teacher.pos_embed")
        return {**encoder(state), **decoder(state)}

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """The student's table and the decoder's; the class token's row is zero."""
        geometry = recipe.student.geometry
        code = torch.cat([torch.zeros(1, geometry.dim), sincos_2d(geometry.grid, geometry.dim)])
        return {"pos_embed": code.unsqueeze(0), "decoder_pos_embed": decoder_positions(recipe)}
