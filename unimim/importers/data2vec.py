"""data2vec's checkpoints for images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..recipe import Recipe
from .base import Importer
from .vit import BEIT_ENCODER, INDICES, beit_encoder, position_index


class Data2vec(Importer):
    """Official data2vec pre-training checkpoints of images (facebookresearch/data2vec_vision @ af9a363, beit)."""

    name = "data2vec"
    recipe = "data2vec"
    rules: ClassVar = BEIT_ENCODER | {r"lm_head\.(weight|bias)": r"branches.mim.head.proj.\1"}
    ignored: ClassVar = {INDICES: "computed by unimim; the official momentum update also averages this integer table"}
    prediction = "lm_head.bias"
    momentum = "model_ema"
    notes = (
        "the tensors do not tell the pixels' mean and std, eps, nor which blocks were the target (the last six, as published; "
        "all of fewer)",
    )

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        sizes = beit_encoder(state)
        depth = sizes["student.depth"]
        return sizes | {"terms.mim.teacher.layers": [*range(max(depth - 6, 0), depth)]}

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        return position_index(recipe)
