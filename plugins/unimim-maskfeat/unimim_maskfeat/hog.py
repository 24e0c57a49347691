"""Histograms of oriented gradients as the target."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unimim import Geometry, Mask, Target, TargetSpec, Teacher, View


class HOG(Teacher):
    """T_b(I) = h_b / max(|h|, 1e-12), h_b = sum of |g| over the pixels of a cell whose gradient g = (gx, gy) lies in bin b.

    gx, gy: Sobel's [1, 2, 1] x [1, 0, -1] of one channel, in 8-bit levels, borders reflected. The bin of a pixel is
    floor(K atan2(gx, gy) / pi) mod K: K equal, hard bins of the unsigned orientation. Each cell of each channel is
    normalized alone, so neither the brightness nor the contrast of a channel matters; a flat cell is all zeros.

    Follows facebookresearch/SlowFast @ 287ec00, slowfast/models/operators.py and masked.py (Wei et al., 2021). Deviation: the
    official code convolves mean/std-normalized pixels in float32, so rounding picks the bin where gx is zero, and the
    histogram of a flat cell. In 8-bit levels every such sum is a whole number and exact. README.md has the size.
    """

    class Config(Teacher.Config):
        """cell: side of a cell in pixels; a patch must be whole cells.  num_bins: K."""

        name: Literal["hog"] = "hog"
        cell: int = Field(8, gt=0, le=64)
        num_bins: int = Field(9, gt=1, le=360)

        @property
        def label(self) -> str:
            return "HOG"

    def __init__(self, config: HOG.Config, geometry: Geometry) -> None:
        super().__init__()
        (height, width), cell = geometry.patch, config.cell
        if height % cell or width % cell:
            whole = [side for side in range(1, 65) if height % side == width % side == 0]
            raise ValueError(
                f"teacher hog: a patch of {height}x{width} pixels is not whole cells of {cell}x{cell}; "
                f"teacher.cell may be {', '.join(map(str, whole))}"
            )
        if min(geometry.image) < 2:
            raise ValueError(f"teacher hog: an image of {geometry.image} pixels has no gradients; give it two or more")
        self.config, self.geometry = config, geometry
        self.spec = TargetSpec(geometry.channels * config.num_bins * (height // cell) * (width // cell))

    @torch.no_grad()
    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N, C K u v) in [0, 1] for patches of u x v cells: channel, bin, row of cells, column of cells."""
        with torch.autocast(view.image.device.type, enabled=False):
            gx, gy = gradients(255 * view.pixels().float())
            bins = orientations(gx, gy, self.config.num_bins)
            cells = self._histograms(self._cells(bins), self._cells((gx.square() + gy.square()).sqrt()))
        num_bins, channels = self.config.num_bins, gx.shape[1]
        tokens = cells.view(num_bins, len(gx), self.geometry.num_tokens, channels, -1).permute(1, 2, 3, 0, 4)
        return Target(tokens.flatten(2))

    def _cells(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (pixels of a cell, B N C u v): for each place inside a cell, what stands there in every cell."""
        (rows, columns), (height, width), cell = self.geometry.grid, self.geometry.patch, self.config.cell
        cut = x.view(*x.shape[:2], rows, height // cell, cell, columns, width // cell, cell)
        return cut.permute(4, 7, 0, 2, 5, 1, 3, 6).reshape(cell * cell, -1)

    def _histograms(self, bins: Tensor, strength: Tensor) -> Tensor:
        """bins, strength (pixels of a cell, cells) -> (K, cells), every cell of length one or zero."""
        histograms = strength.new_zeros(self.config.num_bins, strength.shape[1])
        # One pixel of every cell at a time: no two additions meet, so the sums are the same to the last bit on any device.
        for index, value in zip(bins, strength, strict=True):
            histograms.scatter_add_(0, index[None], value[None])
        return F.normalize(histograms, dim=0)


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, C, H, W) -> gx, gy (B, C, H, W): left minus right and above minus below, smoothed across by [1, 2, 1]."""
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    across, down = x[..., :-2] - x[..., 2:], x[..., :-2, :] - x[..., 2:, :]
    gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return gx, gy


def orientations(gx: Tensor, gy: Tensor, num_bins: int) -> Tensor:
    """gx, gy of one shape -> int64 in [0, K): floor(K atan2(gx, gy) / pi) mod K."""
    return (torch.atan2(gx, gy) / math.pi * num_bins).floor().remainder(num_bins).long()
