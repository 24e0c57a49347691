"""Intersection over union, and what a test set leaves open about it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...address import rng
from .labels import IGNORED


class Agreement(NamedTuple):
    """Percent: mean intersection over union, share of pixels that are right, mean over classes of that share."""

    miou: Tensor
    pixels: Tensor
    classes: Tensor


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(num_classes, num_classes) int64: pixels of class row that were taken for class column; IGNORED ones left out."""
    counts = labels != IGNORED
    pairs = labels[counts].long() * num_classes + predicted[counts].long()
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def areas(matrix: Tensor) -> Tensor:
    """(..., 3, C): of each class the pixels found, those labelled, and those predicted, from confusion (..., C, C)."""
    return torch.stack([matrix.diagonal(dim1=-2, dim2=-1), matrix.sum(-1), matrix.sum(-2)], -2)


def agreement(found: Tensor, whole: Tensor | None = None) -> Agreement:
    """Of areas (..., 3, C), each of shape (...).

    IoU of a class = found / (labelled + predicted - found). A class that is neither labelled nor predicted in any image
    has none and is left out of the mean; one that is predicted but never labelled counts with 0. So do mmseg and
    torchmetrics' MulticlassJaccardIndex. A class's accuracy needs labelled pixels.
    whole (3, C): where a class that is left out takes its value from, if it can.
    """
    hit, labelled, predicted = found.double().unbind(-2)
    iou, accuracy = hit / (labelled + predicted - hit), hit / labelled
    if whole is not None:
        right, own, guessed = whole.double()
        iou = torch.where(iou.isnan(), right / (own + guessed - right), iou)
        accuracy = torch.where(accuracy.isnan(), right / own, accuracy)
    pixels = hit.sum(-1) / labelled.sum(-1)
    return Agreement(100 * iou.nanmean(-1), 100 * pixels, 100 * accuracy.nanmean(-1))


def intervals(found: Tensor, seed: int, resamples: int = 1000) -> list[tuple[float, float]]:
    """Bootstrap 95 % interval of each number of `Agreement`: the images' areas (n, 3, C), drawn again with repetition.

    A class that is in no image drawn keeps the value it has in all: the mean over fewer classes is another quantity.
    """
    n, flat = len(found), found.flatten(1).double()
    times = torch.from_numpy(rng(seed, n).multinomial(n, [1 / n] * n, size=resamples)).double()
    drawn = agreement((times @ flat).view(resamples, *found.shape[1:]), found.sum(0))
    limits = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return [(float(low), float(high)) for low, high in (values.nanquantile(limits) for values in drawn)]
