"""CAE's decoder as the head."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unimim import Encoded, Head, Query, Student
from unimim.layers import Block, init_xavier, sincos_2d


class Decoder(Head):
    """H(z) = W LN(blocks(z + positions)) + b, over the tokens that the student answers for: CAE's hidden ones alone.

    The blocks are self-attention with layer scale and no bias on keys, as wide as the tokens; positions are sin-cos, row
    first. With depth 0 no position is added (CAE v2). The class token meets norm and W only. The last norm and projection run
    at the queried positions. Follows Atten4Vis/CAE @ a7fd162, models/modeling_cae_helper.py, Decoder.
    """

    class Config(Head.Config):
        """The defaults are those of every official size, but for drop_path, which the scripts set to 0.1."""

        name: Literal["cae_decoder"] = "cae_decoder"
        depth: int = Field(4, ge=0, le=1024)
        num_heads: int = Field(12, gt=0, le=2**16)
        mlp_ratio: float = Field(4.0, gt=0, le=64)
        layer_scale: float = Field(0.1, gt=0)
        drop_path: float = Field(0.0, ge=0, lt=1)
        eps: float = Field(1e-6, gt=0)

        @property
        def needs_dense(self) -> bool:
            return True

        @property
        def needs_class(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "Decoder"

    positions: Tensor

    def __init__(self, config: Decoder.Config, student: Student, out_dim: int) -> None:
        """ValueError if the student's width does not divide into num_heads."""
        super().__init__()
        dim = student.geometry.masked_dim
        if config.depth and dim % config.num_heads:
            raise ValueError(
                f"head cae_decoder: the student's width {dim} does not divide into num_heads {config.num_heads}"
            )
        self.register_buffer("positions", sincos_2d(student.geometry.grid, dim, "row"), persistent=False)
        rates = [config.drop_path * number / max(config.depth - 1, 1) for number in range(config.depth)]
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, "qv", config.layer_scale, rate, eps=config.eps)
            for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=config.eps)
        self.proj = nn.Linear(dim, out_dim)
        init_xavier(self)

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, out_dim); (B, 1, out_dim) from the class token for the image."""
        wanted = encoded.prefix[:, :1]
        if query.index is not None:
            x = encoded.tokens
            if self.blocks:
                x = x + (self.positions if encoded.index is None else self.positions[encoded.index])
            for block in self.blocks:
                x, _ = block(x)
            tokens = replace(encoded, tokens=x).at(query.index)
            wanted = torch.cat([wanted, tokens], 1) if query.include_class else tokens
        return self.proj(self.norm(wanted))  # type: ignore[no-any-return]
