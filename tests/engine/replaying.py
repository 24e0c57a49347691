"""A frozen teacher that counts how often it is asked, and recipes that replay it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unimim import Geometry, Mask, Recipe, Rendition, Target, TargetSpec, Teacher, View

from . import toys


class Mixing(Teacher):
    """T(I) = W patches(I), of every image by itself: the same bits in any batch."""

    class Config(Teacher.Config):
        name: Literal["mixing"] = "mixing"
        dim: int = 6
        weights: int = 0

    asked = 0
    weight: Tensor

    def __init__(self, config: Mixing.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.spec = config, TargetSpec(config.dim)
        self.rendition = Rendition(geometry.image, "bilinear")
        draws = torch.Generator().manual_seed(config.weights)
        self.register_buffer("weight", torch.randn(geometry.channels, config.dim, generator=draws))
        self.pool = torch.nn.AvgPool2d(geometry.patch)

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        Mixing.asked += 1
        patches = self.pool(view.pixels(self.rendition)).flatten(2).transpose(1, 2)
        tokens = (patches[..., None] * self.weight).sum(-2)
        return Target(tokens, tokens.mean(1, keepdim=True), tokens[..., 0])


MIXING = ("teacher.name=mixing", "norm=identity", "replay.crops=2", "epochs=4")


def recipe(*more: str) -> Recipe:
    return toys.recipe("mae-micro", *MIXING, *more)


def ids(*more: str) -> Recipe:
    """The ids of a codebook that is fitted first."""
    return toys.recipe("beit-micro", "replay.crops=1", *more)
