"""A cosine across the tokens of a group."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unimim import Loss


class TokenCosine(Loss):
    """L_i = 1 - mean over channels d of <p_d, t_d> / (|p_d| |t_d|), p_d and t_d channel d of all tokens of i's group.

    One number a group, repeated for its queries. Follows AbrahamYabo/SdAE @ 2e08b31, engine_pretrain.py: a cosine similarity of
    (B groups, tokens, channels) along torch's default axis, which is that of the tokens. The usual cosine, channels of one
    token, is the core's `cosine`; the official code computes it where nothing is grouped.
    """

    class Config(Loss.Config):
        """groups: as many as the mask deals hidden patches to."""

        name: Literal["token_cosine"] = "token_cosine"
        groups: int = Field(3, ge=1, le=2**10)

        @property
        def num_groups(self) -> int | None:
            return self.groups

        @property
        def label(self) -> str:
            return "Cosine"

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """pred, target (B, M, D) in runs of M / groups queries -> (B, M). Queries that are not valid are left out."""
        if valid is not None:
            pred, target = (x.masked_fill(~valid.unsqueeze(-1), 0) for x in (pred, target))
        groups, size = self.config.groups, pred.shape[1] // self.config.groups
        assert groups * size == pred.shape[1], "recipes check that the mask deals to as many groups"
        similarity = F.cosine_similarity(pred.unflatten(1, (groups, size)), target.unflatten(1, (groups, size)), dim=2)
        return (1 - similarity.mean(-1)).repeat_interleave(size, 1)
