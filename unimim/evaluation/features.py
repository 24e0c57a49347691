"""Frozen features: one function, the same for training and testing every probe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..axes import Student
from ..engine.data.decode import BadImage
from ..engine.data.sources import ImageSource
from ..recipe import Recipe
from ..schedule import Frozen
from ..types import Size, Tap, View
from ..views import Center

Pool = Literal["mean", "class"]


class Reading(Frozen):
    """Where frozen features are read: pool "mean" (of the patch tokens) or "class" (token), after the final norm or after
    `block` (0-based, without that norm)."""

    pool: Pool = "mean"
    block: int | None = Field(None, ge=0)

    def check(self, recipe: Recipe) -> None:
        """ValueError if what `recipe` trained has no such place."""
        blocks = recipe.student.num_blocks
        if self.block is not None and self.block >= blocks:
            raise ValueError(f"--block: the student has blocks 0 to {blocks - 1}, not {self.block}")
        if self.pool == "class" and not recipe.student.num_prefix:
            raise ValueError("--pool: the student has no class token; use mean")


@dataclass(frozen=True)
class Features:
    """values (n, D) float32 on the CPU, labels (n,) int64, and in words where they were read."""

    values: Tensor
    labels: Tensor
    described: str


@torch.no_grad()
def student_features(
    student: Student,
    source: ImageSource,
    pool: Pool = "mean",
    block: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    batch: int = 256,
) -> Features:
    """One vector an image: the mean of the patch tokens, or the class token, after the final norm or after a block.

    Central square, resized to the student's size, nothing hidden. block: 0-based; None reads the final norm.
    precision "bfloat16" computes under autocast, as a recipe of that precision trains. The student is left in the mode it
    was in. Raises ValueError for a class token the student has not.
    """
    training, student = student.training, student.to(device).eval()
    tap = None if block is None else Tap(block)
    values, labels = [], []
    for images, numbers in _batches(source, student.geometry.image, batch):
        with torch.autocast(torch.device(device).type, torch.bfloat16, precision == "bfloat16"):
            encoded = student(View(images.to(device)), None, () if tap is None else (tap,))
        num_prefix = encoded.prefix.shape[1]
        if pool == "class" and not num_prefix:
            raise ValueError("the student has no class token; use pool=mean")
        sequence = torch.cat([encoded.prefix, encoded.tokens], 1) if tap is None else encoded.taps[tap]
        sequence = sequence.float()
        values.append((sequence[:, num_prefix:].mean(1) if pool == "mean" else sequence[:, 0]).cpu())
        labels += numbers
    student.train(training)
    layer = "final norm" if block is None else f"block {block}"
    what = "mean of patch tokens" if pool == "mean" else "class token"
    described = f"{layer}, {what}" + ("" if precision == "float32" else f", {precision}")
    return Features(torch.cat(values), torch.tensor(labels), described)


def pixel_features(source: ImageSource, size: Size, batch: int = 256) -> Features:
    """The pixels themselves (n, 3 H W) in [0, 1]: what features must beat."""
    values, labels = [], []
    for images, numbers in _batches(source, size, batch):
        values.append(images.flatten(1).float() / 255)
        labels += numbers
    return Features(torch.cat(values), torch.tensor(labels), f"pixels at {size[0]}x{size[1]}")


def _batches(source: ImageSource, size: Size, batch: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Images uint8 (b, 3, H, W) and labels, in order; unreadable images are left out."""
    views = Center(Center.Config())
    no_draw: Any = None  # a central crop draws nothing
    images, labels = [], []
    for index in range(len(source)):
        try:
            image = source.read(index)
        except BadImage:
            continue
        images.append(views.sample(image, no_draw, size, ())["main"].image)
        labels.append(source.label(index))
        if len(images) == batch:
            yield torch.cat(images), labels
            images, labels = [], []
    if images:
        yield torch.cat(images), labels


def standardize(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """(x - mean) / std by the statistics of the training features, column by column; as batch norm without affine does."""
    mean, std = train.mean(0), train.std(0, correction=0)
    scale = 1 / std.clamp_min(1e-6)
    return (train - mean) * scale, (test - mean) * scale
