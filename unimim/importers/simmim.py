"""SimMIM's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..recipe import Recipe
from .base import Importer
from .swin import SWIN_ENCODER, SWIN_IGNORED, swin_encoder
from .vit import BEIT_ENCODER, INDICES, beit_encoder, position_index, under

CHANNELS = 3


class SimMIM(Importer):
    """Official SimMIM pre-training checkpoints of Swin (microsoft/SimMIM @ d3e29bc)."""

    name = "simmim"
    recipe = "simmim"
    rules: ClassVar = under("encoder", SWIN_ENCODER) | {r"decoder\.0\.(weight|bias)": r"branches.mim.head.proj.\1"}
    ignored: ClassVar = under("encoder", SWIN_IGNORED)
    prediction = "decoder.0.bias"
    notes = ("the tensors do not tell the pixels' mean and std (ImageNet's as in the recipe), nor eps",)

    def adapt(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The decoder is a 1 x 1 convolution before a pixel shuffle, so its outputs are (channel, row, column)."""
        return {
            name: channel_last(tensor) if name.startswith("decoder.0.") else tensor for name, tensor in state.items()
        }

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        return refuse_other_channels(swin_encoder(state, "encoder."))


class SimMIMViT(SimMIM):
    """Official SimMIM pre-training checkpoints of plain ViTs (microsoft/SimMIM @ d3e29bc)."""

    name = "simmim-vit"
    recipe = "simmim-vit"
    rules: ClassVar = under("encoder", BEIT_ENCODER) | {r"decoder\.0\.(weight|bias)": r"branches.mim.head.proj.\1"}
    ignored: ClassVar = under("encoder", {INDICES: "computed by unimim"})
    notes = ("the tensors do not tell the pixels' mean and std (ImageNet's as in the recipe), nor eps",)

    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        return refuse_other_channels(beit_encoder(state, "encoder."))

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        return under("encoder", position_index(recipe))


def channel_last(x: Tensor) -> Tensor:
    """(C s s, D, 1, 1) or (C s s,): rows (channel, row, column) -> (s s C, D) or (s s C,): rows (row, column, channel)."""
    return x.reshape(CHANNELS, len(x) // CHANNELS, -1).transpose(0, 1).reshape(x.shape[:2])


def refuse_other_channels(sizes: Mapping[str, Any]) -> Mapping[str, Any]:
    if sizes["student.channels"] != CHANNELS:
        raise ValueError(f"the official SimMIM code predicts {CHANNELS} channels, not {sizes['student.channels']}")
    return sizes
