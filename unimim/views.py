"""View policies: the crops of an image, every rendition cut from the same box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from .axes import Rng, Views
from .types import Rendition, Size, View

Interpolation = Literal["bilinear", "bicubic"]
Box = tuple[int, int, int, int]
"""top, left, height, width in pixels of the source image."""


class Crop(Views):
    """One random crop: one box, mirrored or not, colours jittered, then resized to the student's size and to every rendition.

    The box is sampled as in torchvision's RandomResizedCrop: area uniform in `scale` of the image, log-uniform aspect
    ratio, ten tries, else the largest centred box of a legal ratio. Mirror and jitter are shared by all renditions.
    Deviation: BEiT and data2vec jitter the whole image before the crop, which costs more (docs/numerics.md).
    """

    class Config(Views.Config):
        """scale: share of the image's area.  ratio: width / height.  jitter: strength of brightness, contrast and
        saturation changes, factors uniform in [1 - jitter, 1 + jitter] in random order."""

        name: Literal["crop"] = "crop"
        scale: tuple[float, float] = (0.2, 1.0)
        ratio: tuple[float, float] = (3 / 4, 4 / 3)
        flip: float = Field(0.5, ge=0, le=1)
        jitter: float = Field(0.0, ge=0, le=1)
        interpolation: Interpolation = "bicubic"

        @model_validator(mode="after")
        def _ordered(self) -> Crop.Config:
            if not 0 < self.scale[0] <= self.scale[1] <= 1:
                raise ValueError(f"scale must be 0 < low <= high <= 1, not {self.scale}")
            if not 0.01 <= self.ratio[0] <= self.ratio[1] <= 100:
                raise ValueError(f"ratio must be 0.01 <= low <= high <= 100, not {self.ratio}")
            return self

    def sample(self, image: Tensor, rng: Rng, size: Size, renditions: Sequence[Rendition]) -> dict[str, View]:
        height, width = image.shape[-2:]
        top, left, h, w = box = random_box(height, width, self.config.scale, self.config.ratio, rng)
        cut = image[:, top : top + h, left : left + w]
        flip = rng.random() < self.config.flip
        if self.config.jitter:
            cut = jitter(cut, self.config.jitter, rng)
        made = resize(cut, size, self.config.interpolation).unsqueeze(0)
        more = {r: resize(cut, r.size, r.interpolation).unsqueeze(0) for r in renditions}
        if flip:  # last, where the fewest pixels are
            made, more = made.flip(-1), {rendition: image.flip(-1) for rendition, image in more.items()}
        view = View(made, more, torch.tensor([fractions(box, height, width)]), torch.tensor([flip]))
        return {"main": view}


class Center(Views):
    """The central square, resized: for evaluation and for tests."""

    class Config(Views.Config):
        """share: side of the square in parts of the shorter side."""

        name: Literal["center"] = "center"
        share: float = Field(1.0, gt=0, le=1)
        interpolation: Interpolation = "bicubic"

    def sample(self, image: Tensor, rng: Rng, size: Size, renditions: Sequence[Rendition]) -> dict[str, View]:
        height, width = image.shape[-2:]
        side = max(1, round(min(height, width) * self.config.share))
        box = ((height - side) // 2, (width - side) // 2, side, side)
        cut = image[:, box[0] : box[0] + side, box[1] : box[1] + side]
        view = View(
            resize(cut, size, self.config.interpolation).unsqueeze(0),
            {rendition: resize(cut, rendition.size, rendition.interpolation).unsqueeze(0) for rendition in renditions},
            torch.tensor([fractions(box, height, width)]),
            torch.tensor([False]),
        )
        return {"main": view}


def random_box(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: Rng) -> Box:
    """A box with area in `scale` of the image and aspect in `ratio`, or the largest centred one of a legal ratio."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def fractions(box: Box, height: int, width: int) -> list[float]:
    top, left, h, w = box
    return [top / height, left / width, h / height, w / width]


def resize(image: Tensor, size: Size, interpolation: str) -> Tensor:
    """uint8 (C, h, w) -> uint8 (C, H, W), antialiased; Lanczos exists in Pillow only."""
    if tuple(image.shape[-2:]) == size:
        return image.contiguous()
    if interpolation == "lanczos":
        picture = tv.resize(tv.to_pil_image(image), list(size), InterpolationMode.LANCZOS)
        return torch.from_numpy(np.array(picture)).view(*size, -1).permute(2, 0, 1).contiguous()
    resized: Tensor = tv.resize(image, list(size), InterpolationMode(interpolation), antialias=True)
    return resized.contiguous()


def jitter(image: Tensor, strength: float, rng: Rng) -> Tensor:
    """Brightness, contrast and saturation by factors uniform in [1 - strength, 1 + strength], in random order."""
    changes: list[Any] = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation]
    factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, len(changes))
    for number in rng.permutation(len(changes)):
        image = changes[number](image, float(factors[number]))
    return image
