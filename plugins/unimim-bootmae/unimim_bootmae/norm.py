"""Pixels normalized patch by patch and channel by channel."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from unimim import Norm


class LayerByChannel(Norm):
    """N(x)_jc = (x_jc - mean_c) / sqrt(var_c + eps), over the D / C pixels j of each token and channel c; biased variance.

    A token is laid out as teacher `pixel` does it, channel fastest. Follows LightDXY/BootMAE @ d604b18, run_pretraining.py.
    MAE's norm takes all channels together and the unbiased variance.
    """

    class Config(Norm.Config):
        """channels: of the image, C."""

        name: Literal["layer_by_channel"] = "layer_by_channel"
        channels: int = Field(3, gt=0, le=1024)
        eps: float = Field(1e-5, gt=0)

        @property
        def label(self) -> str:
            return "LayerNorm"

    def forward(self, x: Tensor) -> Tensor:
        """ValueError if the tokens are not pixels of so many channels."""
        channels = self.config.channels
        if x.shape[-1] % channels:
            raise ValueError(
                f"norm layer_by_channel: tokens of {x.shape[-1]} numbers are not pixels of {channels} channels; "
                f"use teacher pixel, and channels as the student has them"
            )
        pixels = x.unflatten(-1, (-1, channels))
        variance, mean = torch.var_mean(pixels, -2, keepdim=True, correction=0)
        normed: Tensor = (pixels - mean) * torch.rsqrt(variance + self.config.eps)
        return normed.flatten(-2)
