"""Masks that follow what the teacher attends to."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unimim import Mask, MaskSampler


class Attentive(MaskSampler):
    """P(i is the next patch to stay visible) = s_i / sum of s over patches not chosen yet, until int(N (1 - ratio)) are.

    s (B, N) is the teacher's saliency: what it attends to is likely seen. The draw is that of the first arrivals of N
    exponential clocks of rates s, -log(1 - u) / s with u uniform (Gumbel top-k): the law of torch.multinomial without
    replacement, which zejiangh/MILAN @ 7dcfe0f, models_milan.py, calls (Hou et al., 2022).
    Deviation: u comes by address (seed, step, image) with 24 bits, so that the number of processes changes no mask.
    """

    class Config(MaskSampler.Config):
        name: Literal["attentive"] = "attentive"
        ratio: float = Field(0.75, gt=0, lt=1)

        def num_visible(self, num_tokens: int) -> int:
            visible = int(num_tokens * (1 - self.ratio))
            if not 0 < visible < num_tokens:
                raise ValueError(
                    f"ratio {self.ratio} of {num_tokens} patches leaves {visible} visible; choose another ratio"
                )
            return visible

        def num_hidden(self, grid: tuple[int, int]) -> int | None:
            return grid[0] * grid[1] - self.num_visible(grid[0] * grid[1])

        @property
        def reads_saliency(self) -> bool:
            return True

    def sample(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(1, N) bool of the right count, which keeps the place of the mask until the teacher has looked."""
        hidden = np.ones((1, grid[0] * grid[1]), dtype=bool)
        hidden[0, rng.permutation(hidden.size)[: self.config.num_visible(hidden.size)]] = False
        return hidden

    def from_saliency(self, saliency: Tensor, noise: Tensor) -> tuple[Mask, ...]:
        """saliency (B, N), at least 0, noise (B, N) uniform in [0, 1) -> one mask, nothing read back from the device."""
        num_tokens = saliency.shape[1]
        visible = self.config.num_visible(num_tokens)
        # Logarithms, because a quotient overflows where nothing is attended to; u = 0 stands for [0, 2^-24).
        arrival = (-torch.log1p(-noise)).clamp_min(2**-25).log() - saliency.clamp_min(torch.finfo().tiny).log()
        first = arrival.topk(visible, 1, largest=False).indices
        hidden = torch.ones_like(saliency, dtype=torch.bool).scatter(1, first, False)
        return (Mask.from_hidden(hidden, num_tokens - visible),)
