"""Random crops of annotated images, as BEiT trains on ADE20K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ...address import rng
from ...axes import Rng
from ...types import Batch, Size, View
from ...views import resize
from .labels import IGNORED

CROPS = 1
"""Purpose of a draw, the last part of its address."""
GREY = (124, 116, 104)
"""What is beyond an image's edge: the mean of ImageNet, which most students see as nearly 0."""


def fitted(size: Size, long: float, short: float) -> Size:
    """The largest size of the same aspect whose longer side is at most `long` and its shorter at most `short` (mmcv)."""
    factor = min(long / max(size), short / min(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def padded(image: Tensor, size: Size) -> Tensor:
    """(3 or 4, H, W) with GREY, and IGNORED in the fourth channel, right and below, so that it is at least `size`."""
    (_, height, width), values = image.shape, (*GREY, IGNORED)
    if height >= size[0] and width >= size[1]:
        return image
    room = 0, max(0, size[1] - width), 0, max(0, size[0] - height)
    return torch.stack([F.pad(plane, room, value=value) for plane, value in zip(image, values, strict=False)])


def distorted(image: Tensor, rng: Rng) -> Tensor:
    """(3, H, W) uint8 -> the same with other colours, by the steps and ranges of mmseg's PhotoMetricDistortion.

    Each with chance 1/2: b added, b in [-32, 32]; times c in [1/2, 3/2], before or after the next two; saturation (of HSV)
    times s in [1/2, 3/2]; hue turned by up to a tenth of the circle. Values stay in [0, 255]. Follows mmseg 0.30,
    pipelines/transforms.py; deviation: rounded once at the end, not after each step.
    """
    add, contrast, first, saturate, turn = rng.random(5) < 0.5
    shift, factor, depth = float(rng.uniform(-32, 32)), float(rng.uniform(0.5, 1.5)), float(rng.uniform(0.5, 1.5))
    hue = float(rng.uniform(-0.1, 0.1))
    x = image.float()
    if add:
        x = (x + shift).clamp(0, 255)
    if contrast and first:
        x = (x * factor).clamp(0, 255)
    if saturate:
        top, low = x.amax(0), x.amin(0)
        # (top - low) / top is the saturation, which ends at 1.
        x = top - (top - x) * torch.clamp(top / (top - low).clamp_min(1e-6), max=depth)
    if turn:
        x = tv.adjust_hue(x.clamp(0, 255) / 255, hue) * 255
    if contrast and not first:
        x = x * factor
    return x.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Crops:
    """Random crops with their classes, as pure functions of (seed, epoch, index). Picklable; runs in loader workers.

    The image is resized to the largest size within `scale` (longer, shorter side) times r, r uniform in `ratio`; a square
    of `size` pixels is cut, where it is not beyond the edge, and cut again, up to ten times, while one class has
    more than `max_share` of its pixels that count; mirrored with chance 1/2; colours `distorted`. Bilinear, classes
    nearest.
    Follows unilm beit2/semantic_segmentation @ 768a3c8 with mmseg 0.30. Deviations: antialiased, and nearest by centres.
    """

    seed: int
    size: int
    scale: tuple[int, int]
    ratio: tuple[float, float] = (0.5, 2.0)
    max_share: float = 0.75

    def __call__(self, image: Tensor, epoch: int, index: int) -> dict[str, Any]:
        """image uint8 (4, H, W): RGB and class -> {"index", "image" (3, size, size), "labels" (1, size, size)}, uint8."""
        draws = rng(self.seed, epoch, index, CROPS)
        factor = draws.uniform(*self.ratio)
        height, width = image.shape[-2:]
        size = fitted((height, width), self.scale[0] * factor, self.scale[1] * factor)
        labels = tv.resize(image[3:], list(size), tv.InterpolationMode.NEAREST_EXACT)
        whole = torch.cat([resize(image[:3], size, "bilinear"), labels])
        cut = padded(self._cut(whole, draws), (self.size, self.size))
        if draws.random() < 0.5:
            cut = cut.flip(-1)
        return {"index": index, "image": distorted(cut[:3], draws), "labels": cut[3:].contiguous()}

    def _cut(self, whole: Tensor, draws: Rng) -> Tensor:
        height, width = whole.shape[-2:]
        for _ in range(11 if self.max_share < 1 else 1):
            top = int(draws.integers(max(height - self.size, 0) + 1))
            left = int(draws.integers(max(width - self.size, 0) + 1))
            cut = whole[:, top : top + self.size, left : left + self.size]
            counts = cut[3].flatten().bincount(minlength=256)[:IGNORED]
            if (counts > 0).sum() > 1 and counts.max() < self.max_share * counts.sum():
                break
        return cut

    def collate(self, samples: Sequence[dict[str, Any]]) -> Batch:
        """Views "main" and "labels", whose image is the class ids (B, 1, size, size) uint8; no masks."""
        views = {
            "main": View(torch.stack([sample["image"] for sample in samples])),
            "labels": View(torch.stack([sample["labels"] for sample in samples])),
        }
        return Batch(views, {}, torch.tensor([sample["index"] for sample in samples]))
