"""Feature maps finer than the patch grid, kept unit by unit: what lies under a token stays together.

A unit is what lies under one token of the student's grid: u x u finer tokens. In the order (B, N, u u, C), units in raster
order and the tokens inside each as well, hiding a token is leaving out a row, and merging neighbours never crosses a unit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..types import Size


def to_units(x: Tensor, grid: Size) -> Tensor:
    """x (B, H, W, C) -> (B, N, u v, C), with N = h w of `grid` and units of u = H / h by v = W / w."""
    batch, height, width, dim = x.shape
    rows, columns = grid
    cut = x.view(batch, rows, height // rows, columns, width // columns, dim)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1, dim)


class PatchMerge(nn.Module):
    """Each 2 x 2 neighbours become one token: W LN([x00, x10, x01, x11]), D -> 2 D, inside units of side `side`.

    Rows before columns in the concatenation, as in Swin and HiViT.
    """

    def __init__(self, dim: int, side: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(4 * dim, eps=eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L u u, D), unit by unit -> (B, L u u / 4, 2 D)."""
        batch, _, dim = x.shape
        half = self.side // 2
        cut = x.view(batch, -1, half, 2, half, 2, dim).permute(0, 1, 2, 4, 5, 3, 6)
        return self.reduction(self.norm(cut.reshape(batch, -1, 4 * dim)))  # type: ignore[no-any-return]


def inner_positions(kept: Tensor, size: int) -> Tensor:
    """kept (B, L) units -> (B, L size): the positions of their tokens, unit by unit."""
    inner = torch.arange(size, device=kept.device)
    return (kept.unsqueeze(-1) * size + inner).flatten(1)
