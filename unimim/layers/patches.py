"""Images as the vectors of pixels under each token, and back; which sizes and pixel statistics make sense."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..types import Size

MAX_SIDE, MAX_TOKENS = 2**13, 2**16
"""Pixels, and patches of the grid: beyond any use, and before the memory is."""


def pair(size: int | Size) -> Size:
    """(height, width) of a size that is given as one number where both are equal."""
    return (size, size) if isinstance(size, int) else size


def check_patches(image: int | Size, patch: int | Size) -> None:
    """ValueError, for a Config to raise, unless the image is whole patches of a number one can afford."""
    (height, width), (rows, columns) = pair(image), pair(patch)
    sides = f"image_size {height}x{width}, patch_size {rows}x{columns}"
    if not 1 <= min(rows, columns, height, width) <= max(rows, columns, height, width) <= MAX_SIDE:
        raise ValueError(f"{sides}: each side is 1 to {MAX_SIDE} pixels")
    if height % rows or width % columns:
        nearest = max(rows, round(height / rows) * rows), max(columns, round(width / columns) * columns)
        raise ValueError(f"{sides}: the image is not whole patches; nearest image_size {list(nearest)}")
    if (height // rows) * (width // columns) > MAX_TOKENS:
        raise ValueError(f"{sides}: more than {MAX_TOKENS} patches")


def check_pixels(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """ValueError, for a Config to raise, unless there is one mean and one positive deviation for each channel."""
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(f"mean and std need channels: {channels} numbers each, std positive")


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
