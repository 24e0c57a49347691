"""Images as the vectors of pixels under each token, and back."""

from __future__ import annotations

from torch import Tensor

from ..types import Size


def patchify(image: Tensor, patch: Size) -> Tensor:
    """(B, C, H, W) -> (B, N, p q C): raster order of patches; inside a patch row, column, channel (channel fastest)."""
    batch, channels, height, width = image.shape
    rows, columns = height // patch[0], width // patch[1]
    cut = image.view(batch, channels, rows, patch[0], columns, patch[1])
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatchify(tokens: Tensor, grid: Size, patch: Size) -> Tensor:
    """The inverse of patchify: (B, N, p q C) -> (B, C, H, W)."""
    batch, channels = len(tokens), tokens.shape[-1] // (patch[0] * patch[1])
    cut = tokens.view(batch, *grid, *patch, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, grid[0] * patch[0], grid[1] * patch[1])
