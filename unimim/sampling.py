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
    """One image, ready: views of batch size 1, and what was drawn for every view the student sees.

    hidden (K, N) bool; source (K, N) int64 where hidden patches may show others; group (K, N) int64 where they are dealt to
    groups; weight (K, N) float32 where positions count differently.  crop: which of its replayed crops the image is in.
    """

    index: int
    crop: int
    views: dict[str, View]
    hidden: dict[str, Tensor]
    source: dict[str, Tensor]
    group: dict[str, Tensor]
    weight: dict[str, Tensor]


class Sampling:
    """Crops and masks of a recipe, as pure functions of (seed, epoch, index). Picklable; runs in loader workers.

    A recipe that replays crops has those of epoch `epoch % crops`.
    """

    def __init__(self, recipe: Recipe, geometry: Geometry, renditions: Sequence[Rendition] = ()) -> None:
        self.seed, self.size, self.replay = recipe.seed, geometry.image, recipe.replay
        self.renditions = tuple(renditions)
        self.views: Views = recipe.views.build()
        self.masks: dict[str, MaskSampler] = {view: mask.build() for view, mask in recipe.masks.items()}
        self.grids = {view: recipe.grid_of(view) for view in recipe.masks}
        self.counts: dict[str, int | None] = {v: mask.num_hidden(self.grids[v]) for v, mask in recipe.masks.items()}

    def __call__(self, image: Tensor, epoch: int, index: int) -> Sample:
        """image uint8 (C, H, W) -> its sample in that epoch."""
        crop = epoch % self.replay.crops if self.replay else 0
        draws = rng(self.seed, crop if self.replay else epoch, index, CROPS)
        views = self.views.sample(image, draws, self.size, self.renditions)
        draws = rng(self.seed, epoch, index, MASKS)
        drawn = {view: sampler.sample(self.grids[view], draws) for view, sampler in self.masks.items()}
        shown, dealt, weighed = {}, {}, {}
        for view, sampler in self.masks.items():
            if sampler.config.substitutes:
                shown[view] = sampler.source(drawn[view], draws)
            if sampler.config.num_groups > 1:
                dealt[view] = sampler.group(drawn[view], draws)
            if sampler.config.weighs:
                weighed[view] = sampler.weight(drawn[view], self.grids[view])
        tensors = ({v: torch.from_numpy(array) for v, array in part.items()} for part in (drawn, shown, dealt, weighed))
        return Sample(index, crop, views, *tensors)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        views = {name: stack([sample.views[name] for sample in samples]) for name in samples[0].views}
        masks = {}
        for view, count in self.counts.items():
            folds = [Mask.from_hidden(fold, count) for fold in _folds([sample.hidden[view] for sample in samples])]
            if view in samples[0].source:
                sources = _folds([sample.source[view] for sample in samples])
                folds = [replace(mask, source=source) for mask, source in zip(folds, sources, strict=True)]
            if view in samples[0].group:
                groups, number = _folds([sample.group[view] for sample in samples]), self.masks[view].config.num_groups
                folds = [mask.grouped(group, number) for mask, group in zip(folds, groups, strict=True)]
            if view in samples[0].weight:
                weights = _folds([sample.weight[view] for sample in samples])
                folds = [replace(mask, weight=weight) for mask, weight in zip(folds, weights, strict=True)]
            masks[view] = tuple(folds)
        (crop,) = {sample.crop for sample in samples}  # a batch is of one epoch
        return Batch(views, masks, torch.tensor([sample.index for sample in samples]), crop)


def _folds(drawn: Sequence[Tensor]) -> Tensor:
    """B times (K, N) -> (K, B, N)."""
    return torch.stack([*drawn], 1)


def stack(views: Sequence[View]) -> View:
    """Views of single images as one view of them all."""
    first = views[0]
    return View(
        torch.cat([view.image for view in views]),
        {rendition: torch.cat([view.renditions[rendition] for view in views]) for rendition in first.renditions},
        None if first.box is None else torch.cat([view.box for view in views if view.box is not None]),
        None if first.flip is None else torch.cat([view.flip for view in views if view.flip is not None]),
    )
