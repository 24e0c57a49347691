"""Edge strengths as the target."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unimim import Geometry, Mask, Target, TargetSpec, Teacher, View


class Edges(Teacher):
    """T_k(I) = mean under a token of |cos(a_k) dI/dx + sin(a_k) dI/dy|, a_k = pi k / K: how steep it is in K directions.

    I is the mean of the channels in [0, 1]; the derivatives are Sobel's, in 1 / pixel, with the border repeated.
    """

    class Config(Teacher.Config):
        """num_directions: K."""

        name: Literal["edges"] = "edges"
        num_directions: int = Field(8, gt=0)

    filters: Tensor

    def __init__(self, config: Edges.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.spec = TargetSpec(config.num_directions)
        sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        angle = torch.arange(config.num_directions).view(-1, 1, 1, 1) * math.pi / config.num_directions
        self.register_buffer("filters", angle.cos() * sobel + angle.sin() * sobel.T, persistent=False)

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N, K), at least 0."""
        gray = view.pixels().mean(1, keepdim=True)
        slopes = F.conv2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), self.filters)
        return Target(F.avg_pool2d(slopes.abs(), self.geometry.patch).flatten(2).mT)
