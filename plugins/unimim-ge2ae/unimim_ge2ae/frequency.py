"""The Fourier spectrum as the target."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unimim import Geometry, Mask, Target, TargetSpec, Teacher, View

from .spectrum import image_of, spectrum


class Frequency(Teacher):
    """T(I) = DFT_2((I - mean) / std) / sqrt(H W) of the whole image, real and imaginary parts, cut into the patch grid.

    In float32. That Ge2-AE (Liu et al., 2022) regresses a two-dimensional Fourier transform is stated; of what, and how it is
    scaled, is ours.
    """

    class Config(Teacher.Config):
        """mean, std: statistics of [0, 1] RGB; ImageNet's by default."""

        name: Literal["frequency"] = "frequency"
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)

        @property
        def cacheable(self) -> bool:
            return False  # as many numbers as pixels, twice, for one Fourier transform

        @property
        def label(self) -> str:
            return "Frequency"

    mean: Tensor
    std: Tensor

    def __init__(self, config: Frequency.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        if not len(config.mean) == len(config.std) == geometry.channels:
            raise ValueError(
                f"teacher frequency needs mean and std of {geometry.channels} numbers, as many as channels"
            )
        self.spec = TargetSpec(2 * geometry.patch[0] * geometry.patch[1] * geometry.channels)
        self.register_buffer("mean", torch.tensor(config.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(-1, 1, 1), persistent=False)

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N, p q 2 C), in the order of `spectrum`."""
        return Target(spectrum((view.pixels() - self.mean) / self.std, self.geometry.patch))

    def picture(self, tokens: Tensor) -> Tensor:
        return image_of(tokens, self.geometry.grid, self.geometry.patch) * self.std + self.mean
