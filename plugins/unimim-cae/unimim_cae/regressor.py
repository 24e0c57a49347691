"""The latent contextual regressor: cross-attention from hidden positions to visible latents."""

from __future__ import annotations

import torch
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn

from unimim.layers import attend


class CrossAttention(nn.Module):
    """softmax((W_q q + b_q) (W_k k)^T / sqrt(d)) (W_v v + b_v), then a projection; no bias on keys."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, M, D), k and v (B, L, D) -> (B, M, D)."""
        q, k, v = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, x in ((self.q, q), (self.k, k), (self.v, v))
        )
        return self.proj(attend(q, k, v, None, 0.0).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class RegressorBlock(nn.Module):
    """y = LN_2(x + s1 CrossAttention(LN_q(x + p), LN_k(c + p_c), LN_v(c))), then y + s2 MLP(y).

    x (B, M, D) stand at positions p, and c = [visible latents, x] at p_c: the queries see one another too. Positions reach
    queries and keys, not values, and the second norm replaces the stream instead of branching off it. Follows
    Atten4Vis/CAE @ a7fd162, models/modeling_cae_helper.py, RegressorBlock.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, layer_scale: float, drop_path: float, eps: float
    ) -> None:
        super().__init__()
        self.norm_q = nn.LayerNorm(dim, eps=eps)
        self.norm_k = nn.LayerNorm(dim, eps=eps)
        self.norm_v = nn.LayerNorm(dim, eps=eps)
        self.attn = CrossAttention(dim, num_heads)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, visible: Tensor, positions: Tensor, positions_visible: Tensor) -> Tensor:
        """x (B, M, D), visible (B, L, D) and the codes of both -> (B, M, D)."""
        context = torch.cat([visible, x], 1)
        keys = self.norm_k(context + torch.cat([positions_visible, positions], 1))
        mixed = self.attn(self.norm_q(x + positions), keys, self.norm_v(context))
        x = self.norm2(x + self.drop_path(self.ls1(mixed)))
        return x + self.drop_path(self.ls2(self.mlp(x)))  # type: ignore[no-any-return]
