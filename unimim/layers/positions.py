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


def resize_relative(table: Tensor, old: Size, new: Size) -> Tensor:
    """A relative position table ((2 h - 1)(2 w - 1) + extra, heads) of grid `old` for grid `new`; extra rows stay.

    BEiT's way (microsoft/unilm @ 768a3c8, beit2/run_class_finetuning.py): along each axis the old offsets are moved to
    +-sum of q^i, i < k, with q such that the outermost ones meet the new outermost ones, so that small offsets, which
    matter most, hardly move; then cubic splines are read at the new offsets. The official interp2d has left SciPy; its
    splines are the tensor products used here.
    """
    if old == new:
        return table
    num_pairs = (2 * old[0] - 1) * (2 * old[1] - 1)
    plane = table[:num_pairs].unflatten(0, (2 * old[0] - 1, 2 * old[1] - 1)).double()
    rows, columns = (_geometric_spline(2 * o - 1, 2 * n - 1).to(table.device) for o, n in zip(old, new, strict=True))
    resized = torch.einsum("ri,cj,ijh->rch", rows, columns, plane)
    return torch.cat([resized.flatten(0, 1).to(table.dtype), table[num_pairs:]])


def _geometric_spline(old: int, new: int) -> Tensor:
    """(new, old) float64: values at evenly spaced offsets from values at geometrically spaced ones."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reach = (ratio ** (old // 2) - 1) / (ratio - 1)
        low, high = (low, ratio) if reach > new // 2 else (ratio, high)
    steps = ratio ** torch.arange(old // 2, dtype=torch.float64)
    arm = steps.cumsum(0)
    places = torch.cat([-arm.flip(0), torch.zeros(1, dtype=torch.float64), arm])
    wanted = torch.arange(new, dtype=torch.float64) - new // 2
    return spline_matrix(places, wanted.clamp(places[0], places[-1]))  # FITPACK repeats the ends


def spline_matrix(x: Tensor, at: Tensor) -> Tensor:
    """(M, N) float64 that turns values at x (N,) ascending, N > 3, into those of the interpolating cubic spline at `at` (M,).

    Not-a-knot ends: the second and the last but one place are no knots, as in FITPACK.
    """
    ends = x[:1].expand(4), x[-1:].expand(4)
    knots = torch.cat([ends[0], x[2:-2], ends[1]])
    inverse: Tensor = torch.linalg.inv(_cubic_basis(knots, x))
    return _cubic_basis(knots, at) @ inverse


def _cubic_basis(knots: Tensor, at: Tensor) -> Tensor:
    """(M, N): the cubic B-splines of N + 4 knots at `at` (M,), by the recursion of Cox and de Boor."""
    piece = (torch.searchsorted(knots, at, right=True) - 1).clamp(3, len(knots) - 5)
    basis = torch.zeros(len(at), len(knots) - 1, dtype=knots.dtype).scatter(1, piece[:, None], 1.0)
    place = at[:, None]
    for degree in (1, 2, 3):
        first, last = knots[: -degree - 1], knots[degree + 1 :]
        rising = (place - first) / (knots[degree:-1] - first)
        falling = (last - place) / (last - knots[1 : len(knots) - degree])
        basis = basis[:, :-1] * rising.nan_to_num(0, 0, 0) + basis[:, 1:] * falling.nan_to_num(0, 0, 0)
    return basis
