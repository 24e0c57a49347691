"""A head of pixels, read in frequencies."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from unimim import Encoded, Head, HeadConfig, Query, Student, Tap
from unimim.layers import unpatchify

from .spectrum import spectrum


class Spectrum(Head):
    """H(z) = DFT_2(image of G(z)) / sqrt(H W), where a head G predicts the pixels of every patch, hidden or not.

    Real and imaginary parts in float32, in the order of the teacher `frequency`; image size, patches and channels are those
    of the student. For the image as a whole, and for the class token, the mean over the tokens, as Objective takes of a target.
    Ge2-AE's second decoder reconstructs in frequency space (Liu et al., 2022); that it does so by way of pixels is ours.
    """

    class Config(Head.Config):
        """head: G, MAE's decoder by default."""

        name: Literal["spectrum"] = "spectrum"
        head: HeadConfig = Field("decoder", validate_default=True)

        @property
        def needs_dense(self) -> bool:
            return self.head.needs_dense

        @property
        def taps(self) -> tuple[Tap, ...]:
            return self.head.taps

        @property
        def label(self) -> str:
            return self.head.label

    def __init__(self, config: Spectrum.Config, student: Student, out_dim: int) -> None:
        """ValueError if the target is no spectrum of the student's image, or if G reads what the student drops."""
        super().__init__()
        self.grid, self.patch = student.geometry.grid, student.geometry.patch
        pixels = self.patch[0] * self.patch[1] * student.geometry.channels
        if out_dim != 2 * pixels:
            raise ValueError(
                f"head spectrum predicts {2 * pixels} numbers a token, not {out_dim}; use teacher frequency"
            )
        if config.head.needs_dense and not student.config.dense:
            raise ValueError(
                f"head {config.head.name!r} inside spectrum reads hidden positions, which are dropped; use decoder"
            )
        self.head = config.head.build(student, pixels)

    def forward(self, encoded: Encoded, query: Query) -> Tensor | tuple[Tensor, ...]:
        """-> (B, M, p q 2 C)."""
        num_tokens = self.grid[0] * self.grid[1]
        everywhere = torch.arange(num_tokens, device=encoded.tokens.device).expand(len(encoded.tokens), -1)
        pixels = self.head(encoded, replace(query, index=everywhere, valid=None, include_class=False))
        parts = pixels if isinstance(pixels, tuple) else (pixels,)
        predictions = tuple(self._read(part, query) for part in parts)
        return predictions if isinstance(pixels, tuple) else predictions[0]

    def _read(self, pixels: Tensor, query: Query) -> Tensor:
        """pixels (B, N, p q C) -> their spectrum at the queried tokens."""
        tokens = spectrum(unpatchify(pixels, self.grid, self.patch), self.patch)
        if query.index is None:
            return tokens.mean(1, keepdim=True)
        wanted = tokens.gather(1, query.index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return torch.cat([tokens.mean(1, keepdim=True), wanted], 1) if query.include_class else wanted
