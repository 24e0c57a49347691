"""Position codes of patch grids: fixed sin-cos tables and relative position biases."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..types import Size


def sincos_2d(grid: Size, dim: int, first: Literal["column", "row"] = "column") -> Tensor:
    """Fixed code (N, D) of every grid position, float32, computed in float64.

    Halves for column x and row y (or the reverse), each [sin(p w_k) | cos(p w_k)] with w_k = 10000^(-k / (D/4)),
    k = 0 .. D/4 - 1. Column first is MAE's (facebookresearch/mae @ efb2a80, util/pos_embed.py), row first is SIM's,
    BootMAE's and CAE's.
    """
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, not {dim}")
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    halves = []
    for place in (columns, rows) if first == "column" else (rows, columns):
        angle = place.flatten()[:, None] * omega
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, 1).float()


def relative_index(grid: Size, num_prefix: int) -> Tensor:
    """(P + N, P + N) int64 rows of the relative position table.

    Patch pairs by (row difference, column difference); with prefix tokens three more rows at the end: prefix -> patch,
    patch -> prefix, prefix -> prefix. Follows microsoft/unilm @ 768a3c8, beit/modeling_finetune.py.
    """
    height, width = grid
    row = torch.arange(height).repeat_interleave(width)
    column = torch.arange(width).repeat(height)
    patches = (row[:, None] - row + height - 1) * (2 * width - 1) + column[:, None] - column + width - 1
    if not num_prefix:
        return patches
    last = (2 * height - 1) * (2 * width - 1)
    index = torch.empty(num_prefix + height * width, num_prefix + height * width, dtype=torch.int64)
    index[:num_prefix], index[:, :num_prefix], index[:num_prefix, :num_prefix] = last, last + 1, last + 2
    index[num_prefix:, num_prefix:] = patches
    return index


class RelativePositionBias(nn.Module):
    """A learned bias (heads, P + N, P + N) added to attention logits, zero at the start."""

    index: Tensor

    def __init__(self, grid: Size, num_prefix: int, num_heads: int) -> None:
        super().__init__()
        num_rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + (3 if num_prefix else 0)
        self.table = nn.Parameter(torch.zeros(num_rows, num_heads))
        self.register_buffer("index", relative_index(grid, num_prefix), persistent=False)

    def forward(self, kept: Tensor | None = None) -> Tensor:
        """(1, heads, P + N, P + N); or (B, heads, L, L) for the sequence positions kept (B, L)."""
        bias = self.table[self.index.flatten()].view(*self.index.shape, -1).permute(2, 0, 1)
        if kept is None:
            return bias.unsqueeze(0)
        return bias[:, kept[:, :, None], kept[:, None, :]].transpose(0, 1)
