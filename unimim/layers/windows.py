"""Attention inside shifted windows, over all tokens or over visible units only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Size, gather
from .blocks import Attention, attend
from .positions import RelativePositionBias
from .units import inner_positions, to_units


class WindowAttention(Attention):
    """softmax(q k^T / sqrt(d) + bias) v inside windows of window[0] x window[1] tokens, then a projection.

    The map of `size` tokens is rolled by `shift` before it is cut into windows; tokens that only the roll brings together do
    not see each other. bias: one learned number for each head and relative position.

    If units are left out, their tokens are neither queries nor keys: every linear layer runs over the kept tokens alone, and
    only the products of queries and keys run over whole windows. That is the attention of GreenMIM (Huang et al., 2022),
    which packs the visible tokens into groups instead; a window's visible tokens see each other in both.
    Order and names follow microsoft/SimMIM @ d3e29bc, models/swin_transformer.py.
    """

    order: Tensor
    place: Tensor
    apart: Tensor | None

    def __init__(self, dim: int, num_heads: int, size: Size, window: Size, grid: Size, shift: bool) -> None:
        """size: the map, in tokens.  grid: its units.  shift: roll by half a window."""
        super().__init__(dim, num_heads)
        self.window, self.inner = window, size[0] // grid[0] * (size[1] // grid[1])
        self.bias = RelativePositionBias(window, 0, num_heads)
        step = (-(window[0] // 2), -(window[1] // 2)) if shift else (0, 0)
        positions = torch.arange(size[0] * size[1]).view(1, *size, 1)
        unit_of = torch.empty_like(positions).flatten()  # raster position -> position unit by unit
        unit_of[to_units(positions, grid).flatten()] = torch.arange(unit_of.numel())
        order = unit_of[_cut(positions.roll(step, (1, 2)), window).flatten()]
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("place", order.argsort(), persistent=False)
        self.register_buffer("apart", _apart(size, window, step) if shift else None, persistent=False)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """x (B, T, D), unit by unit, of all units or of those at kept (B, L) -> (B, T, D)."""
        batch, length, dim = x.shape
        qkv = self.qkv(x)
        if kept is None:
            qkv, hidden = qkv.index_select(1, self.order), None
        else:
            row = self._rows(kept)
            qkv, hidden = gather(F.pad(qkv, (0, 0, 0, 1)), row), (row == length).view(batch, -1, 1, 1, self._tokens)
        q, k, v = qkv.view(-1, self._tokens, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(q, k, v, self._bias(hidden, batch, q.dtype), self.dropout if self.training else 0.0)
        mixed = mixed.transpose(1, 2).reshape(batch, -1, dim)
        if kept is None:
            mixed = mixed.index_select(1, self.place)
        else:
            mixed = gather(mixed, self.place[inner_positions(kept, self.inner)])
        return self.proj(mixed)  # type: ignore[no-any-return]

    @property
    def _tokens(self) -> int:
        return self.window[0] * self.window[1]

    def _rows(self, kept: Tensor) -> Tensor:
        """For every place in a window the row of the kept sequence, or the one after its end if the token is left out."""
        batch, length = kept.shape
        end = length * self.inner
        first = torch.full((batch, len(self.order) // self.inner), end, device=kept.device)
        first.scatter_(1, kept, torch.arange(0, end, self.inner, device=kept.device).expand(batch, -1))
        return (first[:, self.order // self.inner] + self.order % self.inner).clamp_max(end)

    def _bias(self, hidden: Tensor | None, batch: int, dtype: torch.dtype) -> Tensor:
        """(1 or B W, heads, n, n), for W windows of n tokens: what to add to the logits."""
        bias: Tensor = self.bias()
        if self.apart is None and hidden is None:
            return bias
        never = torch.finfo(dtype).min / 2  # finite, so that a window without any token does not become nan
        bias = bias.unsqueeze(0)  # (1, 1, heads, n, n), to broadcast over images and windows
        if self.apart is not None:
            bias = bias.masked_fill(self.apart.unsqueeze(1), never)
        if hidden is not None:
            bias = bias.masked_fill(hidden, never)
        return bias.expand(batch, len(self.order) // self._tokens, -1, -1, -1).flatten(0, 1)


def _cut(x: Tensor, window: Size) -> Tensor:
    """x (B, H, W, C) -> (B, number of windows, n, C), n tokens in raster order."""
    return to_units(x, (x.shape[1] // window[0], x.shape[2] // window[1]))


def _apart(size: Size, window: Size, step: Size) -> Tensor:
    """(number of windows, n, n) bool: pairs that lie in different parts of the map before it was rolled."""
    region = torch.zeros(1, *size, 1, dtype=torch.int64)
    for axis, (length, width, back) in enumerate(zip(size, window, step, strict=True), 1):
        where = torch.arange(length)
        part = (where >= length - width).long() + (where >= length + back)
        region = region * 3 + part.view([-1 if a == axis else 1 for a in range(4)])
    flat = _cut(region, window).flatten(2)[0]
    return flat.unsqueeze(1) != flat.unsqueeze(2)
