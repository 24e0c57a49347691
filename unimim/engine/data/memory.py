"""A source decoded once and for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .decode import BadImage

if TYPE_CHECKING:
    from .sources import ImageSource

MAX_MEMORY = 4 * 2**30
"""Bytes of decoded pixels that `in_memory` accepts."""


def in_memory(source: ImageSource) -> ImageSource:
    """The same source, decoded once and for all: for small images, which would otherwise be decoded in every epoch.

    Bad images stay bad: they raise BadImage when read. Workers share the memory.

    Raises:
        ValueError: the pixels take more than MAX_MEMORY bytes (estimated on every n-th image before all are read).
    """
    count = len(source)
    sample = [_decoded_size(source, index) for index in range(0, count, max(1, count // 64))]
    _check_memory(round(sum(sample) / len(sample) * count))
    return _Memory(source)


class _Memory:
    """All images of a source one after the other in one tensor, which workers share."""

    def __init__(self, source: ImageSource) -> None:
        self.classes = source.classes
        self._source = source
        self._bad: dict[int, str] = {}
        self._shapes = np.zeros((len(source), 3), np.int64)
        pixels = bytearray()
        for index in range(len(source)):
            try:
                image = source.read(index)
            except BadImage as bad:
                self._bad[index] = bad.reason
                continue
            self._shapes[index] = image.shape
            pixels += image.permute(1, 2, 0).numpy().tobytes()
            _check_memory(len(pixels))
        self._ends = np.cumsum([0, *self._shapes.prod(1)])
        self._pixels = torch.frombuffer(pixels or bytearray(1), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def read(self, index: int) -> torch.Tensor:
        if index in self._bad:
            raise BadImage(self.name(index), self._bad[index])
        channels, height, width = self._shapes[index].tolist()
        pixels = self._pixels[self._ends[index] : self._ends[index + 1]].view(height, width, channels)
        return pixels.permute(2, 0, 1).clone()

    def label(self, index: int) -> int:
        return self._source.label(index)

    def fingerprint(self) -> str:
        return self._source.fingerprint()


def _decoded_size(source: ImageSource, index: int) -> int:
    try:
        return source.read(index).numel()
    except BadImage:
        return 0


def _check_memory(size: int) -> None:
    if size > MAX_MEMORY:
        raise ValueError(
            f"the decoded images take about {size / 2**30:.1f} GiB, more than the {MAX_MEMORY / 2**30:.0f} GiB that are "
            "kept in memory: read them from disk instead, or store them smaller"
        )
