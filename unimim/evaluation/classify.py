"""What a classifier says of a source of images, one by one and in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.data.decode import BadImage
from ..engine.data.sources import ImageSource
from ..types import Size
from ..views import Center

Classify = Callable[[Tensor], Tensor]
"""Images (b, 3, H, W) uint8 RGB -> logits (b, C), on any device."""


@torch.no_grad()
def answers(
    classify: Classify, source: ImageSource, indices: Sequence[int], size: Size, share: float = 1.0, batch: int = 64
) -> Iterator[tuple[list[int], Tensor]]:
    """(indices, their logits (b, C) float32 on the CPU) for each batch; unreadable images are left out.

    share: the side of the central square that is shown, in parts of the image's shorter side; it is resized to `size`
    (bicubic, antialiased), and an image that has that size already is shown pixel for pixel.
    """
    views = Center(Center.Config(share=share))
    no_draw: Any = None  # a central crop draws nothing
    for first in range(0, len(indices), batch):
        read, images = [], []
        for index in indices[first : first + batch]:
            try:
                image = source.read(index)
            except BadImage:
                continue
            images.append(views.sample(image, no_draw, size, ())["main"].image)
            read.append(index)
        if read:
            yield read, classify(torch.cat(images)).float().cpu()
