"""BERT's corruption of patches."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from unimim import MaskSampler

MASKED, REPLACED = 0.8, 0.1
"""Shares of the patches asked about that show the mask token and another patch; the others show themselves."""


class Bert(MaskSampler):
    """int(N ratio) random patches are asked about: 80 % show the mask token, 10 % another patch, 10 % themselves.

    Which of the three is drawn for each patch alone, as BERT does; another patch is one of the other N - 1 of the same image,
    uniformly, and may be asked about too. Follows Dosovitskiy et al., 2020, appendix B.1.2, which names the shares but neither
    the draw nor where the other patch comes from: both are ours. Independent draws keep the shares on grids of any size, where
    80 % is no whole number of patches.
    """

    class Config(MaskSampler.Config):
        """ratio: share of patches asked about; the paper also tried BERT's 0.15."""

        name: Literal["bert"] = "bert"
        ratio: float = Field(0.5, gt=0, lt=1)

        def num_hidden(self, grid: tuple[int, int]) -> int | None:
            num_tokens = grid[0] * grid[1]
            count = int(num_tokens * self.ratio)
            if not count:
                raise ValueError(f"ratio {self.ratio} of {num_tokens} patches asks about none; choose a greater ratio")
            return count

        @property
        def substitutes(self) -> bool:
            return True

    def sample(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.bool_]]:
        hidden = np.zeros(grid[0] * grid[1], dtype=bool)
        hidden[rng.permutation(hidden.size)[: self.config.num_hidden(grid)]] = True
        return hidden[None]

    def source(
        self, hidden: np.ndarray[Any, np.dtype[np.bool_]], rng: np.random.Generator
    ) -> np.ndarray[Any, np.dtype[np.int64]]:
        own = np.broadcast_to(np.arange(hidden.shape[1]), hidden.shape)
        other = rng.integers(hidden.shape[1] - 1, size=hidden.shape)
        other += other >= own  # uniform over all but itself
        kind = np.where(hidden, rng.random(hidden.shape), 1.0)
        return np.where(kind < MASKED, -1, np.where(kind < MASKED + REPLACED, other, own))
