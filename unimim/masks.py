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
    """Uniformly random units of `unit` x `unit` patches; int(U (1 - ratio)) of the U units stay visible.

    With single patches that is MAE's masking (facebookresearch/mae @ efb2a80, models_mae.py random_masking); with units of
    32 pixels SimMIM's, which hides ceil(U ratio) of them (microsoft/SimMIM @ d3e29bc, data/data_simmim.py): the same number.
    """

    class Config(MaskSampler.Config):
        """unit: side of a unit, in patches."""

        name: Literal["random"] = "random"
        ratio: float = Field(0.75, gt=0, lt=1)
        unit: int = Field(1, gt=0)

        def units(self, grid: Size) -> Size:
            """The grid of units. ValueError if it is not whole."""
            if grid[0] % self.unit or grid[1] % self.unit:
                whole = [unit for unit in range(1, min(grid) + 1) if grid[0] % unit == grid[1] % unit == 0]
                nearest = min(whole, key=lambda unit: abs(unit - self.unit))
                raise ValueError(
                    f"unit: {grid[0]}x{grid[1]} patches are not whole units of {self.unit}x{self.unit}; nearest {nearest}"
                )
            return grid[0] // self.unit, grid[1] // self.unit

        def num_hidden_units(self, grid: Size) -> int:
            rows, columns = self.units(grid)
            visible = int(rows * columns * (1 - self.ratio))
            if visible < 1 or visible == rows * columns:
                what = "patches" if self.unit == 1 else "units"
                raise ValueError(
                    f"ratio {self.ratio} of {rows * columns} {what} leaves {visible} visible; choose another ratio"
                )
            return rows * columns - visible

        def num_hidden(self, grid: Size) -> int | None:
            return self.num_hidden_units(grid) * self.unit**2

    def sample(self, grid: Size, rng: Rng) -> Hidden:
        side, units = self.config.unit, self.config.units(grid)
        hidden = np.zeros(units[0] * units[1], dtype=bool)
        hidden[rng.permutation(hidden.size)[: self.config.num_hidden_units(grid)]] = True
        return hidden.reshape(units).repeat(side, 0).repeat(side, 1).reshape(1, -1)


class Split(MaskSampler):
    """K masks from one draw: of a random order of the N patches, fold k sees the k-th run of int(N (1 - ratio)), no other.

    No patch is seen twice. SplitMask (arXiv 2112.10740) has K = 2 and ratio 0.5, so that each fold hides what the other
    sees; ExtreMA (microsoft/ExtreMA @ bf30b64, lib/builder.py) K = 5 and ratio 0.8, which leaves one patch of 196 out.
    """

    class Config(MaskSampler.Config):
        """folds: K, at most as many as have room."""

        name: Literal["split"] = "split"
        folds: int = Field(2, ge=2, le=64)
        ratio: float = Field(0.5, gt=0, lt=1)

        def num_visible(self, grid: Size) -> int:
            num_tokens = grid[0] * grid[1]
            visible = int(num_tokens * (1 - self.ratio))
            if not 0 < visible <= num_tokens // self.folds:
                raise ValueError(
                    f"ratio {self.ratio} leaves {visible} of {num_tokens} patches to each of {self.folds} folds, which takes "
                    f"1 to {num_tokens // self.folds}; change ratio or folds"
                )
            return visible

        def num_hidden(self, grid: Size) -> int | None:
            return grid[0] * grid[1] - self.num_visible(grid)

        @property
        def num_folds(self) -> int:
            return self.folds

    def sample(self, grid: Size, rng: Rng) -> Hidden:
        folds, visible = self.config.folds, self.config.num_visible(grid)
        hidden = np.ones((folds, grid[0] * grid[1]), dtype=bool)
        seen = rng.permutation(hidden.shape[1])[: folds * visible].reshape(folds, visible)
        np.put_along_axis(hidden, seen, False, 1)
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
