"""Mask samplers: which patches of the grid are hidden."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from .axes import MaskSampler, Rng
from .types import Size

Hidden = np.ndarray[Any, np.dtype[np.bool_]]


class NoMask(MaskSampler):
    """Nothing is hidden: knowledge distillation, tokenizer training, evaluation."""

    class Config(MaskSampler.Config):
        name: Literal["none"] = "none"

        def num_hidden(self, grid: Size) -> int | None:
            return 0

    def sample(self, grid: Size, rng: Rng) -> Hidden:
        return np.zeros((1, grid[0] * grid[1]), dtype=bool)


class Random(MaskSampler):
    """Uniformly random patches; int(N (1 - ratio)) stay visible, as in MAE (efb2a80, models_mae.py random_masking)."""

    class Config(MaskSampler.Config):
        name: Literal["random"] = "random"
        ratio: float = Field(0.75, gt=0, lt=1)

        def num_hidden(self, grid: Size) -> int | None:
            num_tokens = grid[0] * grid[1]
            visible = int(num_tokens * (1 - self.ratio))
            if visible < 1 or visible == num_tokens:
                raise ValueError(
                    f"ratio {self.ratio} of {num_tokens} patches leaves {visible} visible; choose another ratio"
                )
            return num_tokens - visible

    def sample(self, grid: Size, rng: Rng) -> Hidden:
        num_hidden = self.config.num_hidden(grid)
        hidden = np.zeros((1, grid[0] * grid[1]), dtype=bool)
        hidden[0, rng.permutation(grid[0] * grid[1])[:num_hidden]] = True
        return hidden


class Block(MaskSampler):
    """BEiT's block-wise masking: rectangles are hidden until `num_hidden` of them, or that share of the grid, are.

    A rectangle has area uniform in [min_block, what is left to hide] and log-uniform aspect ratio (h / w) in
    [min_aspect, 1 / min_aspect], both sides rounded and shorter than the grid, at a uniform place; it is taken if it
    hides at least one new patch and not more than are left. After ten failures in a row the official code stops, so the
    count varies and may fall short (microsoft/unilm @ 768a3c8, beit/masking_generator.py); with `exact` the shortfall is
    filled by uniformly random patches, as in BEiT v2.
    """

    class Config(MaskSampler.Config):
        """Give either ratio (rounded down to whole patches) or count. min_block is in patches."""

        name: Literal["block"] = "block"
        ratio: float | None = Field(None, gt=0, lt=1)
        count: int | None = Field(None, gt=0)
        exact: bool = False
        min_block: int = Field(16, gt=0)
        min_aspect: float = Field(0.3, ge=0.01, le=1)

        @model_validator(mode="after")
        def _one_of(self) -> Block.Config:
            if (self.ratio is None) == (self.count is None):
                raise ValueError("give either ratio or count")
            return self

        def budget(self, grid: Size) -> int:
            """Patches to hide at most."""
            num_tokens = grid[0] * grid[1]
            budget = self.count if self.ratio is None else int(num_tokens * self.ratio)
            if budget is None or not 0 < budget < num_tokens:
                given = f"count {self.count}" if self.ratio is None else f"ratio {self.ratio}"
                raise ValueError(f"{given}: hiding {budget} of {num_tokens} patches leaves nothing to hide or to see")
            if self.min_block > (grid[0] - 1) * (grid[1] - 1):
                raise ValueError(
                    f"min_block: blocks of {self.min_block} patches do not fit inside {grid[0]}x{grid[1]}; lower min_block"
                )
            return budget

        def num_hidden(self, grid: Size) -> int | None:
            budget = self.budget(grid)
            return budget if self.exact else None

    def sample(self, grid: Size, rng: Rng) -> Hidden:
        budget = self.config.budget(grid)
        hidden = np.zeros(grid, dtype=bool)
        left = budget
        while left:
            added = self._add_block(hidden, left, rng)
            if not added:
                break
            left -= added
        flat = hidden.reshape(1, -1)
        if left and self.config.exact:
            flat[0, rng.permutation(np.flatnonzero(~flat[0]))[:left]] = True
        return flat

    def _add_block(self, hidden: Hidden, left: int, rng: Rng) -> int:
        """Hide one rectangle; the number of newly hidden patches, or 0 when ten tries failed."""
        (height, width), config = hidden.shape, self.config
        bound = math.log(config.min_aspect)
        for _ in range(10):
            area = config.min_block + (left - config.min_block) * rng.random()
            aspect = math.exp(bound - 2 * bound * rng.random())
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (h < height and w < width):
                continue
            top, side = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            block = hidden[top : top + h, side : side + w]
            added = h * w - int(block.sum())
            if 0 < added <= left:
                block[:] = True
                return added
        return 0
