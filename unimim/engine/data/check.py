"""What a data set holds: every image read once."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from .decode import BadImage
from .sources import ImageSource

QUANTILES = (0, 5, 50, 95, 100)
"""Percent."""


@dataclass(frozen=True)
class Findings:
    """Of one split. classes: images a class, by name.  widths, heights: pixels at QUANTILES.  images_per_s: decoded by one
    process, without what lies between them."""

    images: int
    unreadable: tuple[BadImage, ...]
    classes: dict[str, int]
    widths: tuple[int, ...]
    heights: tuple[int, ...]
    images_per_s: float

    def data(self) -> dict[str, Any]:
        """For JSON."""
        unreadable = [{"name": bad.name, "reason": bad.reason} for bad in self.unreadable]
        return self.__dict__ | {"unreadable": unreadable, "quantiles": QUANTILES}


def check(source: ImageSource, workers: int = 0) -> Findings:
    """Read every image, in `workers` processes besides this one if there are any."""
    loader = DataLoader(_Read(source), batch_size=32, collate_fn=list, num_workers=workers)
    bad, sizes, seconds = [], [], 0.0
    for found, taken in (pair for pairs in loader for pair in pairs):
        seconds += taken
        if isinstance(found, BadImage):
            bad.append(found)
        else:
            sizes.append(found)
    counted = Counter(source.label(index) for index in range(len(source)))
    classes = {name: counted[label] for label, name in enumerate(source.classes)}
    heights, widths = (_quantiles(column) for column in zip(*sizes, strict=True)) if sizes else ((), ())
    return Findings(len(source), tuple(bad), classes, widths, heights, round(len(source) / max(seconds, 1e-9), 1))


def _quantiles(values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(value) for value in np.percentile(values, QUANTILES, method="nearest"))


class _Read(Dataset[Any]):
    """index -> (height and width or what is wrong, seconds)."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[tuple[int, int] | BadImage, float]:
        start = time.perf_counter()
        found: tuple[int, int] | BadImage
        try:
            _, height, width = self.source.read(index).shape
            found = height, width
        except BadImage as error:
            found = error
        return found, time.perf_counter() - start
