"""Whole images from windows of the size a model was trained at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .transforms import padded


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin: every `stride`, the last moved back to end with the image."""
    return [min(start, length - window) for start in range(0, max(length - window + stride, 1), stride)]


def slide(logits_of: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int, batch: int = 8) -> Tensor:
    """Logits (C, H, W) of image (3, H, W) uint8: at each pixel the mean over the windows that hold it.

    logits_of: (n, 3, window, window) -> (n, C, window, window), called with up to `batch` windows.
    An image smaller than the window is padded right and below. As mmseg's slide_inference, 0.30.
    """
    height, width = image.shape[-2:]
    image = padded(image, (window, window))
    tops, lefts = (starts(length, window, stride) for length in image.shape[-2:])
    places = list(dict.fromkeys((top, left) for top in tops for left in lefts))
    total, count = torch.zeros(()), torch.zeros(image.shape[-2:], device=image.device)
    for first in range(0, len(places), batch):
        part = places[first : first + batch]
        windows = torch.stack([image[:, top : top + window, left : left + window] for top, left in part])
        for (top, left), logits in zip(part, logits_of(windows).float(), strict=True):
            if total.ndim == 0:
                total = logits.new_zeros(len(logits), *image.shape[-2:])
            total[:, top : top + window, left : left + window] += logits
            count[top : top + window, left : left + window] += 1
    return (total / count)[:, :height, :width]
