"""BootMAE's decoders as the head: cross-attention to a layer of the encoder in every block."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimim import Encoded, Head, Query, Student, Tap
from unimim.layers import Block, attend, gather, init_xavier, scatter, sincos_2d, truncated_normal


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v, q from x, k and v from the context, then a projection; no bias on keys.

    d = floor(dim / num_heads), so the inner width num_heads d may be below dim: 504 of 512 for 12 heads.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = dim // num_heads * num_heads
        self.q = nn.Linear(dim, inner)
        self.k = nn.Linear(context_dim, inner, bias=False)
        self.v = nn.Linear(context_dim, inner)
        self.proj = nn.Linear(inner, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, L, D), context (B, L', D') -> (B, L, D)."""
        q, k, v = (
            linear(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, tokens in ((self.q, x), (self.k, context), (self.v, context))
        )
        return self.proj(attend(q, k, v, None, 0.0).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Injection(nn.Module):
    """Attention(x, LN(f)): what a `Block` mixes tokens with instead of self-attention."""

    def __init__(self, dim: int, feature_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_dim, eps=eps)
        self.attn = Attention(dim, feature_dim, num_heads)
        # Official keys and values are one matrix, and its start is xavier's of that.
        inner = self.attn.q.out_features
        self.gain = math.sqrt((inner + feature_dim) / (2 * inner + feature_dim))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """x (B, L, D), features (B, L', D') -> (B, L, D)."""
        return self.attn(x, self.norm(features))  # type: ignore[no-any-return]


class InjectedBlock(nn.Module):
    """x <- x + Attention(LN(x), LN(x)); x <- x + Attention(LN(x), LN(f)); x <- x + MLP(LN(x)): norms 1, 3 and 4, 2."""

    def __init__(self, dim: int, feature_dim: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, dim, num_heads)
        injection = Injection(dim, feature_dim, num_heads, eps)
        self.inject = Block(dim, num_heads, mlp_ratio, eps=eps, attention=injection)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """x (B, P + N, D), features (B, P + L, D') -> (B, P + N, D)."""
        normed = self.norm(x)
        x, _ = self.inject(x + self.attn(normed, normed), features)
        return x


class InjectedDecoder(Head):
    """H(z) = W LN(blocks(place(W' z), f)) + b, read at the queried positions; f is what student block `inject` returned.

    `place` puts every visible token on its own grid position as it is, and mask token + position (sin-cos, row first) on
    the others; a dense student's tokens already stand there. Every block (`InjectedBlock`) reads f, class token and visible
    patches, before the student's final norm and without positions: the decoder need not ask the last tokens for what an
    early layer knows (pixels: block 0), nor for what the last one does before its norm (features: the last block). The
    gradient reaches the student by both ways. Follows LightDXY/BootMAE @ d604b18, models/modeling_pretrain_bootmae.py, which
    predicts everywhere; here the last norm and projection run where they are asked for. Deviation: the official pixel head
    is a transposed convolution, hence the same linear layer with one bias a channel instead of one a number.
    """

    class Config(Head.Config):
        """The defaults are those of the pixel decoder.

        inject: 0-based block of the student that is read.  num_heads: need not divide dim, see `Attention`.
        """

        name: Literal["injected_decoder"] = "injected_decoder"
        inject: int = Field(0, ge=0, le=1023)
        dim: int = Field(512, gt=0, le=2**16, multiple_of=4)
        depth: int = Field(2, gt=0, le=1024)
        num_heads: int = Field(12, gt=0, le=2**16)
        mlp_ratio: float = Field(4.0, gt=0, le=64)
        eps: float = Field(1e-6, gt=0)

        @model_validator(mode="after")
        def _fits(self) -> InjectedDecoder.Config:
            if self.num_heads > self.dim:
                raise ValueError(f"num_heads {self.num_heads} leaves no number of dim {self.dim} to a head")
            return self

        @property
        def needs_class(self) -> bool:
            return True

        @property
        def taps(self) -> tuple[Tap, ...]:
            return (Tap(self.inject),)

        @property
        def label(self) -> str:
            return "Decoders"

    positions: Tensor | None

    def __init__(self, config: InjectedDecoder.Config, student: Student, out_dim: int) -> None:
        super().__init__()
        (self.tap,) = config.taps
        dim, sparse = config.dim, not student.config.dense
        self.embed = nn.Linear(student.geometry.masked_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if sparse else None
        positions = sincos_2d(student.geometry.grid, dim, "row") if sparse else None
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(
            InjectedBlock(dim, student.dim, config.num_heads, config.mlp_ratio, config.eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.eps)
        self.proj = nn.Linear(dim, out_dim)
        self._init()

    def _init(self) -> None:
        init_xavier(self)
        for part in self.modules():
            if isinstance(part, Injection):
                for linear in (part.attn.k, part.attn.v):
                    nn.init.xavier_uniform_(linear.weight, part.gain)
        if self.mask_token is not None:
            truncated_normal(self.mask_token)

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, out_dim); (B, 1, out_dim) from the class token for the image."""
        prefix, tokens = self.embed(encoded.prefix), self.embed(encoded.tokens)
        if encoded.index is not None and self.mask_token is not None and self.positions is not None:
            hidden = (self.mask_token + self.positions).to(tokens.dtype).expand(len(tokens), -1, -1)
            tokens = scatter(tokens, encoded.index, hidden)
        x = torch.cat([prefix, tokens], 1)
        for block in self.blocks:
            x = block(x, encoded.taps[self.tap])
        if query.index is None:
            wanted = x[:, :1]
        else:
            wanted = gather(x, query.index + prefix.shape[1])
            if query.include_class:
                wanted = torch.cat([x[:, :1], wanted], 1)
        return self.proj(self.norm(wanted))  # type: ignore[no-any-return]
