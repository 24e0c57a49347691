"""ConMIM's projector as the head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unimim import Encoded, Head, Query, Student
from unimim.layers import BatchNorm, init_truncated


class Projector(Head):
    """H(z) = B'(W3 r(B(W2 r(B(W1 z))))), r = max(0, .), B batch norms, B' one without scale and shift, W without bias.

    Class and mask tokens are part of all statistics, whatever is asked for, so every layer runs over all of
    (B, P + N, D) and the queried ones are picked at the end. In training the statistics are those of one process, of one
    micro-batch and of one pass of the student. A momentum copy with batch_norm: batch does the same with its own tokens.

    Follows TencentARC/ConMIM @ 4263955, modeling_pretrain.py (_build_mlp, forward). Deviation: the statistics are float32
    sums whatever the precision of the run, and `num_batches_tracked` stays where it is.

    health: shares of the variance of all projected patches that their position alone ("position") or their image alone
    ("image") accounts for. A batch norm hides a collapse from the variance; 1 in either says the same.
    """

    class Config(Head.Config):
        """hidden_dim: width of the two inner layers."""

        name: Literal["projector"] = "projector"
        hidden_dim: int = Field(4096, gt=0, le=2**16)

        @property
        def needs_dense(self) -> bool:
            return True

        @property
        def needs_class(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "FC"

    def __init__(self, config: Projector.Config, student: Student, out_dim: int) -> None:
        super().__init__()
        dim, hidden = student.geometry.masked_dim, config.hidden_dim
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden, bias=False),
            BatchNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden, bias=False),
            BatchNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, out_dim, bias=False),
            BatchNorm(out_dim, affine=False),
        )
        init_truncated(self)
        self.shares: dict[str, Tensor] = {}

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, out_dim); (B, 1, out_dim) from the class token for the image."""
        num_prefix = encoded.prefix.shape[1]
        projected: Tensor = self.layers(torch.cat([encoded.prefix, encoded.tokens], 1))
        prefix, tokens = projected[:, :num_prefix], projected[:, num_prefix:]
        self.shares = shares(tokens)
        return replace(encoded, prefix=prefix, tokens=tokens).asked(query)

    @property
    def health(self) -> Mapping[str, Tensor]:
        return self.shares


@torch.no_grad()
def shares(tokens: Tensor) -> dict[str, Tensor]:
    """tokens (B, N, D) -> position, the variance over patches of their means over images, and image, that over images of
    their means over patches, both by the variance of all tokens; about 1 / B and 1 / N for tokens of pure noise."""
    x = tokens.float()
    spread = x.flatten(0, 1).var(0, correction=0).sum().clamp_min(torch.finfo(x.dtype).tiny)
    return {name: x.mean(axis).var(0, correction=0).sum() / spread for axis, name in enumerate(("position", "image"))}
