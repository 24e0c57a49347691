"""MILAN's prompting decoder as the head."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimim import Encoded, Head, Mask, Query, Student
from unimim.layers import Block, attend, init_xavier, sincos_2d


class PromptingAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over (B, M, D), then a projection: q from x; k, v from the prompts and from x."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
        """x (B, M, D), prompts (B, F, D) -> (B, M, D)."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv = self.kv(torch.cat([prompts, x], 1)).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(q, k, v, None, 0.0)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class PromptingDecoder(Head):
    """H(z)_i = y_i / |y_i|, y = W LN(x) + b, where x holds the fixed tokens f = W' z + positions of the class token and the
    visible patches as they are, and those of hidden patches, m = mask token + positions, after `depth` times

        m <- m + Attention(queries LN(m); keys and values of [f, LN(m)]),  m <- m + MLP(LN(m)).

    f is not layer-normed on its way to keys and values, and never updated: it prompts. Follows zejiangh/MILAN @ 7dcfe0f,
    models_milan.py, Block_fordecoder, Attention_fordecoder and forward_decoder (Hou et al., 2022), which puts
    keys back into raster order and predicts everywhere; here no query, key or prediction is computed that nobody asks for.
    The unit length is in the head, so that the core's l2, a mean over the D numbers of a prediction, is (2 - 2 cos) / D;
    a term's weight of D makes it the official loss.
    """

    class Config(Head.Config):
        """The defaults are MILAN's for every encoder size."""

        name: Literal["prompting_decoder"] = "prompting_decoder"
        dim: int = Field(512, gt=0, le=2**16)
        depth: int = Field(8, gt=0, le=1024)
        num_heads: int = Field(16, gt=0, le=2**16)
        mlp_ratio: float = Field(4.0, gt=0, le=64)
        eps: float = Field(1e-6, gt=0)

        @model_validator(mode="after")
        def _divides(self) -> PromptingDecoder.Config:
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
            return "Decoders"

    positions: Tensor

    def __init__(self, config: PromptingDecoder.Config, student: Student, out_dim: int) -> None:
        """ValueError if the student keeps hidden patches."""
        super().__init__()
        if student.config.dense:
            raise ValueError(
                f"head prompting_decoder puts mask tokens where patches are hidden, but student {student.config.name!r} "
                f"has its own there; use masking: drop"
            )
        self.embed = nn.Linear(student.dim, config.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.register_buffer("positions", sincos_2d(student.geometry.grid, config.dim), persistent=False)
        self.blocks = nn.ModuleList(
            Block(
                config.dim,
                config.num_heads,
                config.mlp_ratio,
                eps=config.eps,
                attention=PromptingAttention(config.dim, config.num_heads),
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.proj = nn.Linear(config.dim, out_dim)
        init_xavier(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, out_dim) float32, of length 1; (B, 1, out_dim) from the class token for the image."""
        batch, num_prefix, _ = encoded.prefix.shape
        num_tokens = len(self.positions)
        kept = encoded.index
        if kept is None:
            kept = torch.arange(num_tokens, device=self.positions.device).expand(batch, -1)
        hidden = _others(kept, num_tokens)
        prefix, visible = self.embed(torch.cat([encoded.prefix, encoded.tokens], 1)).split(
            [num_prefix, kept.shape[1]], 1
        )
        visible = visible + self.positions[kept]
        prompts, x = torch.cat([prefix, visible], 1), self.mask_token + self.positions[hidden]
        for block in self.blocks:
            x, _ = block(x, prompts)
        if query.index is None:
            wanted = prefix[:, :1]
        else:
            tokens = torch.cat([visible, x], 1)
            wanted = Encoded(tokens, prefix, encoded.grid, torch.cat([kept, hidden], 1)).at(query.index)
            if query.include_class:
                wanted = torch.cat([prefix[:, :1], wanted], 1)
        return F.normalize(self.proj(self.norm(wanted)).float(), dim=-1)


def _others(index: Tensor, num_tokens: int) -> Tensor:
    """Positions that are not at index (B, L) -> (B, N - L), ascending."""
    others = torch.ones(len(index), num_tokens, dtype=torch.bool, device=index.device).scatter(1, index, False)
    return Mask.from_hidden(others, num_tokens - index.shape[1]).hidden_index
