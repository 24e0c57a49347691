"""The transformer block shared by the ViT student and by decoder heads."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..types import gather

QkvBias = Literal["qkv", "qv", "none"]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d) + bias) v over (B, L, D), then a projection.

    qkv_bias "qv" keeps the key's bias at zero (BEiT), "qkv" learns all three (ViT, MAE).
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: QkvBias = "qkv", dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias == "qkv")
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == "qv" else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._mix(*self.split(x), bias)

    def at(self, x: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
        """Its output (B, M, D) at rows (B, M), places in the sequence x (B, L, D); bias (1, heads, L, L) or None."""
        dim, for_all = x.shape[-1], self._qkv_bias()
        for_q, for_kv = (None, None) if for_all is None else (for_all[:dim], for_all[dim:])
        q = F.linear(gather(x, rows), self.qkv.weight[:dim], for_q).unflatten(-1, (self.num_heads, -1))
        k, v = F.linear(x, self.qkv.weight[dim:], for_kv).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        if bias is not None:
            by_query = bias[0].transpose(0, 1)
            bias = by_query.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2)
        return self._mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        mixed = attend(q, k, v, bias, self.dropout if self.training else 0.0)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, L, d) of x (B, L, D)."""
        q, k, v = F.linear(x, self.qkv.weight, self._qkv_bias()).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _qkv_bias(self) -> Tensor | None:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv.bias
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Attention over (B, heads, L, d). Fused where a device has fused kernels; written out on CPU, where that is faster."""
    if q.device.type != "cpu":
        bias = bias if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    weights = logits.softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


class Block(nn.Module):
    """x + s1 * Attention(LN(x)), then x + s2 * MLP(LN(x)), with layer scale s (or none) and drop path.

    forward returns the stream and the MLP branch as it is before the addition (data2vec's "fc" target).
    attention: what to mix tokens with instead of `Attention`, a module of (x, context).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: QkvBias = "qkv",
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        attention_dropout: float = 0.0,
        eps: float = 1e-6,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn: Any = attention or Attention(dim, num_heads, qkv_bias, attention_dropout)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.recompute = False

    def forward(self, x: Tensor, context: Tensor | None = None, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, L, D) -> stream (B, L, D), MLP branch (B, L, D).

        context: what the attention reads beside x; for `Attention` a bias broadcastable to (B, heads, L, L).
        rows (B, M): places in the sequence whose stream and branch (B, M, D) are wanted; the others are mixed in, and spared
        the rest. The attention must be `Attention`, its bias the same for all images.
        With `recompute` set only the input is kept for the backward pass, which computes the rest once more.
        """
        if self.recompute and torch.is_grad_enabled():
            outputs: tuple[Tensor, Tensor] = checkpoint(self._run, x, context, rows, use_reentrant=False)
            return outputs
        return self._run(x, context, rows)

    def _run(self, x: Tensor, context: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        normed = self.norm1(x)
        mixed = self.attn(normed, context) if rows is None else self.attn.at(normed, context, rows)
        x = (x if rows is None else gather(x, rows)) + self.drop_path(self.ls1(mixed))
        branch = self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return x + branch, branch


def init_xavier(module: nn.Module) -> None:
    """MAE's start: xavier-uniform matrices (a convolution as the matrix it is), zero biases but the convolution's."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.view(part.weight.shape[0], -1))


def truncated_normal(tensor: Tensor, std: float = 0.02) -> None:
    """BEiT's truncated normal: cut at one standard deviation, which leaves a deviation of 0.54 std."""
    nn.init.trunc_normal_(tensor, std=std, a=-std, b=std)


def init_truncated(module: nn.Module) -> None:
    """BEiT's start: truncated normal matrices and convolutions, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            truncated_normal(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
