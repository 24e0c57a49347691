"""Pixels as the target."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..axes import Teacher
from ..layers.patches import patchify, unpatchify
from ..types import Geometry, Mask, Target, TargetSpec, View


class Pixel(Teacher):
    """T(I) = the pixels under each token, as (x - mean) / std.

    Order inside a patch and the use of the student's statistics follow facebookresearch/mae @ efb2a80, models_mae.py.
    """

    class Config(Teacher.Config):
        """mean, std: statistics of [0, 1] RGB; ImageNet's by default."""

        name: Literal["pixel"] = "pixel"
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)

        @property
        def cacheable(self) -> bool:
            return False

        @property
        def label(self) -> str:
            return "Pixel"

    mean: Tensor
    std: Tensor

    def __init__(self, config: Pixel.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        if not len(config.mean) == len(config.std) == geometry.channels:
            raise ValueError(f"teacher pixel needs mean and std of {geometry.channels} numbers, as many as channels")
        self.spec = TargetSpec(geometry.patch[0] * geometry.patch[1] * geometry.channels)
        self.register_buffer("mean", torch.tensor(config.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(-1, 1, 1), persistent=False)

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N, p q C)."""
        return Target(patchify((view.pixels() - self.mean) / self.std, self.geometry.patch))

    def picture(self, tokens: Tensor) -> Tensor:
        return unpatchify(tokens, self.geometry.grid, self.geometry.patch) * self.std + self.mean
