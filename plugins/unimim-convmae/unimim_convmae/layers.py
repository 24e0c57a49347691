"""Convolutions over units: of a map, only what lies under the kept tokens is computed."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from unimim.layers import gather, scatter, to_units

EPS = 1e-5
"""Of the norms of the convolution stages; the official code leaves torch's default there."""


class UnitConv(nn.Conv2d):
    """y = W [x_1 .. x_kk] + b for each k x k tokens: a convolution whose stride is its kernel, inside units of side u.

    The units of a finer map are whole kernels, so a unit's outputs are a linear map of that unit alone. The weight keeps the
    shape of a convolution, (D, C, k, k).
    """

    def __init__(self, dim: int, out_dim: int, kernel: int, side: int) -> None:
        """side: u, in tokens; a multiple of `kernel`."""
        super().__init__(dim, out_dim, kernel, stride=kernel)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, u u, C) -> (B, L, (u / k)^2, D)."""
        batch, length, _, dim = x.shape
        inner = self.side // self.kernel_size[0]
        cut = to_units(x.reshape(batch * length, self.side, self.side, dim), (inner, inner))
        y = F.linear(cut.flatten(2), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)
        return y.view(batch, length, inner * inner, -1)


class PatchEmbed(nn.Module):
    """GELU(LN(conv(x))), the convolution as wide as it steps."""

    def __init__(self, dim: int, out_dim: int, kernel: int, side: int) -> None:
        super().__init__()
        self.proj = UnitConv(dim, out_dim, kernel, side)
        self.norm = nn.LayerNorm(out_dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, u u, C) -> (B, L, (u / k)^2, D)."""
        return F.gelu(self.norm(self.proj(x)))


class ConvBlock(nn.Module):
    """x + W2 K(M W1 LN(x)), then x + MLP(LN(x)): K a depth-wise 5 x 5 convolution over the map, M the gate of visible units.

    Of hidden units nothing is computed but the zeros that M leaves of them: whatever they held would reach neither K nor the
    strided convolutions of visible units. Follows Alpha-VL/ConvMAE @ 4c97b4c, vision_transformer.py (CBlock), which computes
    the whole map and multiplies by M in the same place.
    """

    def __init__(self, dim: int, mlp_ratio: float, grid: tuple[int, int], side: int, drop_path: float) -> None:
        """grid: units (h, w).  side: of a unit, in tokens."""
        super().__init__()
        self.grid, self.side = grid, side
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.conv1 = nn.Linear(dim, dim)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv2 = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """x (B, L, u u, C), the units at kept (B, L) or all of them -> (B, L, u u, C)."""
        x = x + self.drop_path(self.conv2(self._mix(self.conv1(self.norm1(x)), kept)))
        mixed: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return mixed

    def _mix(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """K(M x), x (B, L, u u, C) -> the same shape."""
        batch, _, inner, dim = x.shape
        if kept is not None:
            nothing = x.new_zeros(batch, self.grid[0] * self.grid[1], inner * dim)
            x = scatter(x.flatten(2), kept, nothing)
        y = self.attn(from_units(x, self.grid, self.side, dim).permute(0, 3, 1, 2))
        y = to_units(y.permute(0, 2, 3, 1), self.grid)
        return y if kept is None else gather(y, kept)


def from_units(x: Tensor, grid: tuple[int, int], side: int, dim: int) -> Tensor:
    """The inverse of `to_units` for square units: (B, N, u u C) or (B, N, u u, C) -> (B, h u, w u, C)."""
    rows, columns = grid
    cut = x.reshape(-1, rows, columns, side, side, dim).permute(0, 1, 3, 2, 4, 5)
    return cut.reshape(-1, rows * side, columns * side, dim)
