"""timm's training transforms as functions of the image's address."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from ..address import rng
from ..types import Batch, Size, View

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
AUGMENT = 3
"""Purpose of a draw: the augmentation of one image; 1 and 2 are crops and masks."""


def augment(
    size: Size, seed: int, crop: tuple[float, float] = (0.08, 1.0), auto: str = "", erasing: float = 0.0
) -> Augment:
    """Random resized crop (bicubic) of that share of the area, flip, timm's automatic augmentation `auto`, random erasing."""
    transform = create_transform(
        size,
        is_training=True,
        scale=crop,
        color_jitter=None,
        auto_augment=auto or None,
        interpolation="bicubic",
        re_prob=erasing,
        re_mode="pixel",
    )
    for part in transform.transforms:
        for op in getattr(part, "ops", ()):
            if op.name == "PosterizeIncreasing":
                op.level_fn = _posterize_level
    return Augment(transform, seed)


def _posterize_level(level: float, hparams: Any) -> tuple[int]:
    """timm's, but 1 bit where it asks for 0, which Pillow now refuses; the official recipes got a black image."""
    return (max(1, 4 - int(level / 10 * 4)),)


@dataclass(frozen=True)
class Augment:
    """A timm training transform as a function of (seed, epoch, index); its normalization, which erasing needs, undone."""

    transform: Any
    seed: int

    def __call__(self, image: Tensor, epoch: int, index: int) -> tuple[int, Tensor]:
        """image (C, H, W) uint8 -> (index, float image in [0, 1] but for erased pixels)."""
        with seeded(self.seed, epoch, index, AUGMENT):
            shown: Tensor = self.transform(V.to_pil_image(image))
        return index, shown * STD + MEAN

    def collate(self, samples: Sequence[tuple[int, Tensor]]) -> Batch:
        images = torch.stack([image for _, image in samples])
        return Batch({"main": View(images)}, {}, torch.tensor([index for index, _ in samples]))


@contextmanager
def seeded(*address: int) -> Iterator[None]:
    """Python's, NumPy's and torch's (CPU) generators start at `address` inside, and are as before afterwards."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed = int(rng(*address).integers(2**32))
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])
