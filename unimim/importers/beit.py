"""BEiT's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..recipe import Recipe
from .base import Importer
from .vit import BEIT_ENCODER, INDICES, beit_encoder, position_index


class BEiT(Importer):
    """Official BEiT pre-training checkpoints (microsoft/unilm @ 768a3c8, beit)."""

    name = "beit"
    recipe = "beit"
    rules: ClassVar = BEIT_ENCODER | {r"lm_head\.(weight|bias)": r"branches.mim.head.proj.\1"}
    ignored: ClassVar = {INDICES: "computed by unimim"}
    prediction = "lm_head.bias"
    notes = (
        "the tokenizer is another file; without teacher.weights=encoder.pkl the teacher is random, so evaluate or export the "
        "student but do not go on training",
        "the tensors do not tell the pixels' mean and std (ImageNet's as in the recipe; models trained on ImageNet-22k used "
        "0.5: student.mean=[0.5,0.5,0.5] student.std=[0.5,0.5,0.5]), eps, nor the number of heads without relative positions",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        vocabulary = {"terms.mim.teacher.vocab_size": len(state["lm_head.bias"])} if "lm_head.bias" in state else {}
        return beit_encoder(state) | vocabulary

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        return position_index(recipe)
