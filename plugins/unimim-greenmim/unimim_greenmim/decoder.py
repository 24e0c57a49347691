"""The order in which the official code hands visible tokens to its decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from unimim import Encoded, Head, HeadConfig, Query, Student, Tap, uniform

BITS = 24
"""Of a uniform float32."""


class GreenMIMDecoder(Head):
    """H(z) = D(z at p o s): a decoder D that gets the j-th visible token at the position p[s[j]] instead of p[j].

    p: the visible positions of an image, ascending; s: a permutation of them (`order`). The official encoder returns its
    tokens in raster order, but the decoder puts them where the sorted noise of the mask says, so one in L stands at its own
    position (LayneH/GreenMIM @ b981012, modeling/base_green_models.py random_masking and forward_decoder; its first release
    as well). Hidden positions are right. For checkpoints trained that way; a new run has no use for it.

    Deviation: the official s is drawn anew at every step; here it is a function of which patches are visible.
    """

    class Config(Head.Config):
        """decoder: D, any head with mask tokens of its own; the published one by default."""

        name: Literal["greenmim_decoder"] = "greenmim_decoder"
        decoder: HeadConfig = Field({"name": "decoder", "dim": 512, "depth": 1, "num_heads": 16}, validate_default=True)

        @model_validator(mode="after")
        def _has_mask_tokens(self) -> GreenMIMDecoder.Config:
            if self.decoder.needs_dense:
                raise ValueError(
                    f"decoder: head {self.decoder.name!r} has no mask tokens of its own, so no order to lose; use decoder"
                )
            return self

        @property
        def needs_class(self) -> bool:
            return self.decoder.needs_class

        @property
        def taps(self) -> tuple[Tap, ...]:
            return self.decoder.taps

        @property
        def label(self) -> str:
            return "Decoder"

    def __init__(self, config: GreenMIMDecoder.Config, student: Student, out_dim: int) -> None:
        """ValueError for a student that keeps hidden patches: its tokens have no order to lose."""
        super().__init__()
        if student.config.dense:
            raise ValueError("head greenmim_decoder permutes the tokens of a student with masking: drop; use decoder")
        self.decoder = config.decoder.build(student, out_dim)

    def forward(self, encoded: Encoded, query: Query) -> Tensor | tuple[Tensor, ...]:
        """-> what the decoder predicts, (B, M, out_dim)."""
        index = encoded.index
        if index is not None:
            encoded = replace(encoded, index=index.gather(1, self.order(index)))
        predictions: Tensor | tuple[Tensor, ...] = self.decoder(encoded, query)
        return predictions

    def order(self, index: Tensor) -> Tensor:
        """Visible positions (B, L), ascending -> s (B, L) int64: token j goes to position index[s[j]].

        Uniform over masks: the order of L uniform numbers whose address is the sum, over the visible positions, of a fixed
        48-bit number each.
        """
        high, low = (uniform(index.flatten(), 2) * 2**BITS).long().unbind(1)
        key = ((high << BITS) + low).view_as(index).sum(1)
        return uniform(key, index.shape[1]).argsort(dim=1, stable=True)
