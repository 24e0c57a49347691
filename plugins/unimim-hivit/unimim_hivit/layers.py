"""The two kinds of blocks of HiViT that are not a plain transformer's."""

from __future__ import annotations

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from unimim.layers import Attention, RelativePositionBias


class MlpBlock(nn.Module):
    """x + MLP(LN(x)): a transformer block without attention, whose second half keeps its name."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float, eps: float) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class RelativeAttention(Attention):
    """softmax(q k^T / sqrt(d) + bias) v, bias: one learned number for each head and relative position, zero at the start."""

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int]) -> None:
        """grid: tokens (h, w) of the whole image."""
        super().__init__(dim, num_heads)
        self.bias = RelativePositionBias(grid, 0, num_heads)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """x (B, L, D), the tokens at kept (B, L) or all of them -> (B, L, D)."""
        return super().forward(x, self.bias(kept))
