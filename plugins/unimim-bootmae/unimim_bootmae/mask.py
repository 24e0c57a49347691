"""Blocks, a few patches of which are shown after all, filled up at random; and what hidden patches count."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from unimim import MaskSampler

Grid = tuple[int, int]
Hidden = np.ndarray[Any, np.dtype[np.bool_]]
ASPECT = math.log(0.3)
TRIES = 1000
"""Of a block that fits; a draw in which none does, possible on long thin grids alone, ends in single patches."""


class RolledBlock(MaskSampler):
    """b = int(N blocks) patches in rectangles; r of them, r uniform in 0 .. roll, chosen at random, are shown again, and
    random others hidden, until H = N - int(N (1 - ratio)) are. W = 1 + (hidden among the 3 x 3 patches around it) / 9.

    A rectangle has min_block to min(max_block, b - hidden so far) patches, aspect log-uniform between 0.3 and 1 / 0.3, and
    hides at least one new patch and not more than that. Official code (LightDXY/BootMAE @ d604b18, masking_generator.py,
    utils.py mask_to_index, run_pretraining.py) draws an order of the patches in which b come last, turns it by r places, and
    hides the last H. W is the official weight of a hidden patch's loss; it is larger inside blocks, counts patches beyond the
    border as visible, and no mean is divided by it. Deviation: r is drawn for every image, not for the batch of a process.
    """

    class Config(MaskSampler.Config):
        """ratio: share that is hidden.  blocks: share that is hidden by rectangles (120 of 196).  min_block, max_block: in
        patches.  roll: the largest r.  weighted: False for W = 1.
        """

        name: Literal["rolled_block"] = "rolled_block"
        ratio: float = Field(0.75, gt=0, lt=1)
        blocks: float = Field(0.6125, gt=0, lt=1)
        min_block: int = Field(16, gt=0, le=2**16)
        max_block: int = Field(60, gt=0, le=2**16)
        roll: int = Field(3, ge=0, le=2**16)
        weighted: bool = True

        @model_validator(mode="after")
        def _ordered(self) -> RolledBlock.Config:
            if self.blocks > self.ratio:
                raise ValueError(f"blocks {self.blocks} hides more than ratio {self.ratio}; lower blocks")
            if self.min_block > self.max_block:
                raise ValueError(f"min_block {self.min_block} is above max_block {self.max_block}")
            return self

        def num_block(self, grid: Grid) -> int:
            """Patches that rectangles hide. ValueError if they cannot."""
            count = int(grid[0] * grid[1] * self.blocks)
            if self.min_block > (grid[0] - 1) * (grid[1] - 1):
                raise ValueError(
                    f"min_block: blocks of {self.min_block} patches do not fit inside {grid[0]}x{grid[1]}; lower min_block"
                )
            return count

        def num_hidden(self, grid: Grid) -> int | None:
            num_tokens = grid[0] * grid[1]
            visible = int(num_tokens * (1 - self.ratio))
            if not 0 < visible < num_tokens:
                raise ValueError(
                    f"ratio {self.ratio} of {num_tokens} patches leaves {visible} visible; choose another ratio"
                )
            most = min(self.num_block(grid), visible)
            if self.roll > most:
                raise ValueError(f"roll {self.roll}: no more than {most} patches can be shown again; lower roll")
            return num_tokens - visible

        @property
        def weighs(self) -> bool:
            return self.weighted

    def sample(self, grid: Grid, rng: np.random.Generator) -> Hidden:
        """-> (1, N) bool, True = hidden."""
        hidden, count = self.draw_blocks(grid, rng), self.config.num_hidden(grid)
        inside, outside = (rng.permutation(np.flatnonzero(hidden == where)) for where in (True, False))
        shown = int(rng.integers(self.config.roll + 1))
        hidden[inside[:shown]] = False
        hidden[outside[: count - len(inside) + shown]] = True
        return hidden.reshape(1, -1)

    def draw_blocks(self, grid: Grid, rng: np.random.Generator) -> Hidden:
        """-> (N,) bool: rectangles alone."""
        hidden = np.zeros(grid, dtype=bool)
        left = self.config.num_block(grid)
        while left:
            added = self._add_block(hidden, min(left, self.config.max_block), rng)
            if not added:
                free = rng.permutation(np.flatnonzero(~hidden))
                hidden.flat[free[:left]] = True
                break
            left -= added
        return hidden.reshape(-1)

    def _add_block(self, hidden: Hidden, most: int, rng: np.random.Generator) -> int:
        """Hide one rectangle; the number of newly hidden patches, 1 to `most`, or 0 if no try fits."""
        height, width = hidden.shape
        for _ in range(TRIES):
            area = self.config.min_block + (most - self.config.min_block) * rng.random()
            aspect = math.exp(ASPECT * (1 - 2 * rng.random()))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (h < height and w < width):
                continue
            top, side = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            block = hidden[top : top + h, side : side + w]
            added = h * w - int(block.sum())
            if 0 < added <= most:
                block[:] = True
                return added
        return 0

    def weight(self, hidden: Hidden, grid: Grid) -> np.ndarray[Any, np.dtype[np.float32]]:
        """hidden (K, N) -> (K, N) float32: W of hidden patches, 1 of visible ones, which official code asks nothing of."""
        padded = np.pad(hidden.reshape(-1, *grid), ((0, 0), (1, 1), (1, 1)))
        around = sum(
            padded[:, row : row + grid[0], column : column + grid[1]].astype(np.float32)
            for row in range(3)
            for column in range(3)
        )
        return np.where(hidden, 1 + np.reshape(around, hidden.shape) / 9, 1).astype(np.float32)
