"""Mean colours as ids."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unimim import Geometry, Mask, Target, TargetSpec, Teacher, View

MAX_BITS = 15
"""Of all channels together: a prediction is a score for every colour."""


class MeanColor(Teacher):
    """T(I) = sum over channels c of 2^(b (C - 1 - c)) q_c, q = clamp(floor(2^b u), 0, 2^b - 1): 64 R + 8 G + B for three bits.

    u: mean of a channel over the pixels of a patch, in [0, 1]. Follows Dosovitskiy et al., 2020, appendix B.1.2 ("3-bit, mean
    color", 512 classes). The paper does not say where the bins end, in which range the pixels are, nor how the ids are
    numbered: equal bins of [0, 1] are ours, and the numbering does not matter. Pixels normalized with the student's mean and
    std would collapse to few classes; a View's never are.
    """

    class Config(Teacher.Config):
        """bits: b, of each channel."""

        name: Literal["mean_color"] = "mean_color"
        bits: int = Field(3, gt=0, le=MAX_BITS)

        @property
        def discrete(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "Pixel"

    weights: Tensor

    def __init__(self, config: MeanColor.Config, geometry: Geometry) -> None:
        super().__init__()
        bits = config.bits * geometry.channels
        if bits > MAX_BITS:
            raise ValueError(
                f"teacher mean_color: {config.bits} bits of {geometry.channels} channels are 2^{bits} classes, more than "
                f"2^{MAX_BITS}; lower teacher.bits, or student.channels"
            )
        self.config, self.geometry = config, geometry
        self.spec = TargetSpec(2**bits, discrete=True)
        weights = (2**config.bits) ** torch.arange(geometry.channels - 1, -1, -1)
        self.register_buffer("weights", weights.view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N) int64 in [0, 2^(b C))."""
        (height, width), levels = self.geometry.patch, 2**self.config.bits
        with torch.autocast(view.image.device.type, enabled=False):
            # In 8-bit levels sums are whole numbers, so the order of pixels decides no bin.
            total = F.avg_pool2d(255 * view.pixels().float(), (height, width), divisor_override=1)
            bins = (total * levels / (255 * height * width)).floor().clamp(0, levels - 1).long()
        return Target((bins * self.weights).sum(1).flatten(1))
