"""Hidden patches in groups."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from unimim import MaskSampler

Rng = np.random.Generator


class Folded(MaskSampler):
    """int(N (1 - ratio)) uniformly random patches stay visible; the others are dealt at random to groups of equal size.

    At 14 x 14 and the defaults 49 patches are visible and 147 = 3 x 49 hidden, so that a group is as large as what the
    student sees. Follows AbrahamYabo/SdAE @ 2e08b31, models_mae.py and engine_pretrain.py, whose groups are runs of the
    order that the mask was drawn in. It drops what is left over when the count does not divide; here that is refused.
    """

    class Config(MaskSampler.Config):
        name: Literal["folded"] = "folded"
        ratio: float = Field(0.75, gt=0, lt=1)
        groups: int = Field(3, ge=1, le=2**10)

        def num_hidden(self, grid: tuple[int, int]) -> int | None:
            """ValueError unless every group gets as many patches, two at least."""
            num_tokens = grid[0] * grid[1]
            hidden = num_tokens - int(num_tokens * (1 - self.ratio))
            whole = range(2 * self.groups, num_tokens, self.groups)
            if hidden in whole:
                return hidden
            if not whole:
                raise ValueError(f"groups: {num_tokens} patches are too few for {self.groups} groups of two; use fewer")
            nearest = min(whole, key=lambda count: abs(count - hidden))
            raise ValueError(
                f"ratio {self.ratio} hides {hidden} of {num_tokens} patches, not {self.groups} equal groups of two or more; "
                f"nearest ratio {(nearest - 0.5) / num_tokens:.6g}"
            )

        @property
        def num_groups(self) -> int:
            return self.groups

    def sample(self, grid: tuple[int, int], rng: Rng) -> np.ndarray[Any, np.dtype[np.bool_]]:
        hidden = np.zeros((1, grid[0] * grid[1]), dtype=bool)
        hidden[0, rng.permutation(hidden.size)[: self.config.num_hidden(grid)]] = True
        return hidden

    def group(self, hidden: np.ndarray[Any, np.dtype[np.bool_]], rng: Rng) -> np.ndarray[Any, np.dtype[np.int64]]:
        groups = np.zeros(hidden.shape, dtype=np.int64)
        for row, fold in zip(groups, hidden, strict=True):
            count = int(fold.sum())
            row[fold] = rng.permutation(count) // (count // self.config.groups)
        return groups
