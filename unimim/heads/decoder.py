"""MAE's decoder as the head."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..axes import Head, Student
from ..layers.blocks import Block, init_xavier
from ..layers.positions import sincos_2d
from ..types import Encoded, Query, gather, scatter


class Decoder(Head):
    """H(z) = linear(LN(blocks(place(W z) + positions))), over the whole grid, read at the queried positions.

    `place` puts every visible token on its own grid position and one learned mask token on the others; a dense student's
    tokens already stand there. Prefix tokens take part. Follows facebookresearch/mae @ efb2a80, models_mae.py, which
    predicts everywhere; here the last block and the last projection are asked only where it is.
    """

    class Config(Head.Config):
        """The defaults are MAE's for every encoder size."""

        name: Literal["decoder"] = "decoder"
        dim: int = Field(512, gt=0, le=2**16)
        depth: int = Field(8, ge=0, le=1024)
        num_heads: int = Field(16, gt=0, le=2**16)
        mlp_ratio: float = Field(4.0, gt=0, le=64)
        eps: float = Field(1e-6, gt=0)

        @model_validator(mode="after")
        def _divides(self) -> Decoder.Config:
            if self.dim % self.num_heads or self.dim % 4:
                raise ValueError(
                    f"dim {self.dim} must divide into num_heads {self.num_heads} and into 4 (sin-cos positions)"
                )
            return self

        @property
        def needs_class(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "Decoder"

    positions: Tensor

    def __init__(self, config: Decoder.Config, student: Student, out_dim: int) -> None:
        super().__init__()
        self.embed = nn.Linear(student.geometry.masked_dim, config.dim)
        sparse = not student.config.dense
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if sparse else None
        self.register_buffer("positions", sincos_2d(student.geometry.grid, config.dim), persistent=False)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, config.mlp_ratio, eps=config.eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.proj = nn.Linear(config.dim, out_dim)
        init_xavier(self)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, out_dim); (B, 1, out_dim) from the class token for the image."""
        tokens, prefix = self.embed(encoded.tokens), self.embed(encoded.prefix)
        if encoded.index is not None and self.mask_token is not None:
            everywhere = self.mask_token.to(tokens.dtype).expand(len(tokens), len(self.positions), -1)
            tokens = scatter(tokens, encoded.index, everywhere)
        x = torch.cat([prefix, tokens + self.positions], 1)
        rows = _rows(query, prefix.shape[1], len(x), x.device)
        for block in self.blocks[:-1]:
            x, _ = block(x)
        wanted = self.blocks[-1](x, None, rows)[0] if self.blocks else gather(x, rows)
        return self.proj(self.norm(wanted))  # type: ignore[no-any-return]


def _rows(query: Query, num_prefix: int, batch: int, device: torch.device) -> Tensor:
    """Places (B, M) in the sequence of what is queried; the class token is the first."""
    first = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    if query.index is None:
        return first
    places = query.index + num_prefix
    return torch.cat([first, places], 1) if query.include_class else places
