"""Where the patches of one view lie in another."""

from __future__ import annotations

import torch
from torch import Tensor


def place(
    grid: tuple[int, int], seen: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres of a view's patches in units of another view's patches: y (B, N), x (B, N), scale (B, 2).

    seen, wanted: box (B, 4) as fractions of the image before mirroring, and flip (B,), of the view whose patches are the
    unit and of the view whose patches are placed. (0, 0) is the centre of the first patch of `seen` as it was seen, mirrored
    if it was. scale: height and width of `wanted` over those of `seen`.
    """
    (box, flip), (other, other_flip) = seen, wanted
    scale = other[:, 2:] / box[:, 2:]
    offset = (other[:, :2] - box[:, :2]) / box[:, 2:]
    rows, columns = (torch.arange(side, device=box.device, dtype=box.dtype) + 0.5 for side in grid)
    height, width = grid
    y = scale[:, :1] * rows + offset[:, :1] * height
    columns = torch.where(other_flip[:, None], width - columns, columns)
    x = scale[:, 1:] * columns + offset[:, 1:] * width
    x = torch.where(flip[:, None], width - x, x)
    y, x = (y - 0.5).repeat_interleave(width, 1), (x - 0.5).repeat(1, height)
    return y, x, scale


def relative_code(
    grid: tuple[int, int], seen: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], omega: Tensor
) -> Tensor:
    """(B, N, 2 D): [sin a, cos a] of y, x, 10 ln(height ratio) and 10 ln(width ratio), a = value * omega (D / 4,).

    The first half is the absolute sin-cos code, row first, at the places that the wanted view's patches have in the seen
    one; for the same crop twice it is that code, and the second half is that of 0. Follows
    OpenGVLab/Siamese-Image-Modeling @ bbdec30, util/pos_embed.py, where crops are measured in the mirrored image.
    """
    y, x, scale = place(grid, seen, wanted)
    sizes = (10 * scale.log()).unsqueeze(1).expand(-1, y.shape[1], -1)
    angles = torch.cat([torch.stack([y, x], -1), sizes], -1).unsqueeze(-1) * omega
    return torch.stack([angles.sin(), angles.cos()], -2).flatten(2)
