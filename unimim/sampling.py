"""From a decoded image and its address to the batch an objective reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .address import rng
from .axes import MaskSampler, Views
from .recipe import Recipe
from .types import Batch, Geometry, Mask, Rendition, View

CROPS, MASKS = 1, 2
"""Purposes, the last part of a draw's address."""


@dataclass(frozen=True)
class Sample:
    """One image, ready: views of batch size 1, and for every view the student sees hidden (K, N) bool, and source (K, N)
    int64 where hidden patches may show others."""

    index: int
    views: dict[str, View]
    hidden: dict[str, Tensor]
    source: dict[str, Tensor]


class Sampling:
    """Crops and masks of a recipe, as pure functions of (seed, epoch, index). Picklable; runs in loader workers."""

    def __init__(self, recipe: Recipe, geometry: Geometry, renditions: Sequence[Rendition] = ()) -> None:
        self.seed, self.size, self.grid = recipe.seed, geometry.image, geometry.grid
        self.renditions = tuple(renditions)
        self.views: Views = recipe.views.build()
        self.masks: dict[str, MaskSampler] = {view: mask.build() for view, mask in recipe.masks.items()}
        self.counts: dict[str, int | None] = {v: mask.num_hidden(self.grid) for v, mask in recipe.masks.items()}
        self.substituting = tuple(view for view, mask in recipe.masks.items() if mask.substitutes)

    def __call__(self, image: Tensor, epoch: int, index: int) -> Sample:
        """image uint8 (C, H, W) -> its sample in that epoch."""
        views = self.views.sample(image, rng(self.seed, epoch, index, CROPS), self.size, self.renditions)
        draws = rng(self.seed, epoch, index, MASKS)
        drawn = {view: sampler.sample(self.grid, draws) for view, sampler in self.masks.items()}
        shown = {view: self.masks[view].source(drawn[view], draws) for view in self.substituting}
        hidden, source = (
            {view: torch.from_numpy(array) for view, array in arrays.items()} for arrays in (drawn, shown)
        )
        return Sample(index, views, hidden, source)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        views = {name: _stack([sample.views[name] for sample in samples]) for name in samples[0].views}
        masks = {}
        for view, count in self.counts.items():
            folds = torch.stack([sample.hidden[view] for sample in samples], 1)  # (K, B, N)
            masks[view] = tuple(Mask.from_hidden(fold, count) for fold in folds)
            if view in self.substituting:
                sources = torch.stack([sample.source[view] for sample in samples], 1)
                masks[view] = tuple(
                    replace(mask, source=source) for mask, source in zip(masks[view], sources, strict=True)
                )
        return Batch(views, masks, torch.tensor([sample.index for sample in samples]))


def _stack(views: Sequence[View]) -> View:
    first = views[0]
    return View(
        torch.cat([view.image for view in views]),
        {rendition: torch.cat([view.renditions[rendition] for view in views]) for rendition in first.renditions},
        None if first.box is None else torch.cat([view.box for view in views if view.box is not None]),
        None if first.flip is None else torch.cat([view.flip for view in views if view.flip is not None]),
    )
