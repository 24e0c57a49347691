"""The focal frequency loss."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from unimim import Loss, TargetSpec


class FocalFrequency(Loss):
    """L = mean over a token's coefficients of w |d|^2, d = p - t complex, w = |d| / max |d|, no gradient through w.

    The maximum is that of an image and channel over the queried tokens; with `where: all` the mean of L over tokens is the focal
    frequency loss of whole images (EndlessSora/focal-frequency-loss @ 352f69d, its defaults: alpha 1, ortho, full spectrum).
    That Ge2-AE uses it is second-hand.
    """

    class Config(Loss.Config):
        """channels: of the image, C; a token is p q times C real and C imaginary parts, as teacher `frequency` lays it out.

        A loss is told the width of the target alone, so another image than RGB must be said here too.
        """

        name: Literal["focal_frequency"] = "focal_frequency"
        channels: int = Field(3, gt=0, le=1024)

        @property
        def label(self) -> str:
            return "l2"

    def __init__(self, config: FocalFrequency.Config, spec: TargetSpec) -> None:
        """ValueError if the target cannot be a spectrum of so many channels."""
        super().__init__(config, spec)
        if spec.dim % (2 * config.channels):
            raise ValueError(
                f"loss focal_frequency: tokens of {spec.dim} numbers are not complex and of {config.channels} channels; "
                f"use teacher frequency, and channels as the student has them"
            )

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """pred, target (B, M, p q 2 C) -> (B, M)."""
        square = (pred - target).square().unflatten(-1, (-1, 2, self.config.channels)).sum(-2)  # (B, M, p q, C)
        if valid is not None:
            square = square.masked_fill(~valid[:, :, None, None], 0)
        size = square.detach().sqrt()
        weight = size / size.amax((1, 2), keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
        distances: Tensor = (weight * square).mean((-2, -1))
        return distances
