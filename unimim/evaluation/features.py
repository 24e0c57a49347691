"""Frozen features: one function, the same for training and testing every probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..axes import Student, Teacher
from ..engine.data.decode import BadImage
from ..engine.data.sources import ImageSource
from ..recipe import Recipe
from ..sampling import stack
from ..schedule import Frozen
from ..types import Rendition, Size, Tap, View
from ..views import Center

Pool = Literal["mean", "class"]


class Reading(Frozen):
    """Where frozen features are read: pool "mean" (of the patch tokens) or "class" (token), after the final norm or after
    `block` (0-based, without that norm).  of "teacher": the mean of the first term's target tokens instead, before their
    norm: what the teacher itself knows of whole images."""

    pool: Pool = "mean"
    block: int | None = Field(None, ge=0)
    of: Literal["student", "teacher"] = "student"

    def check(self, recipe: Recipe) -> None:
        """ValueError if what `recipe` trained has no such place."""
        if self.of == "teacher":
            self._check_teacher(recipe)
            return
        blocks = recipe.student.num_blocks
        if self.block is not None and self.block >= blocks:
            raise ValueError(f"--block: the student has blocks 0 to {blocks - 1}, not {self.block}")
        if self.pool == "class" and not recipe.student.num_prefix:
            raise ValueError("--pool: the student has no class token; use mean")

    def _check_teacher(self, recipe: Recipe) -> None:
        teacher = next(iter(recipe.terms.values())).teacher
        problem = ""
        if self.pool != "mean" or self.block is not None:
            problem = "reads the mean of its target tokens; leave out pool and block"
        elif teacher.discrete:
            problem = f"{teacher.label} answers with ids, which have no mean; measure the student only"
        elif teacher.needs_mask or teacher.reads_folds:
            problem = f"{teacher.label} has a target under a mask only; measure the student only"
        if problem:
            raise ValueError(f"features.of=teacher: {problem}")


@dataclass(frozen=True)
class Features:
    """values (n, D) float32 on the CPU, labels (n,) int64, and in words where they were read.

    whose: what tells their metrics from those of the student's features: "" or "teacher".
    """

    values: Tensor
    labels: Tensor
    described: str
    whose: str = ""

    def metric(self, name: str) -> str:
        """The name of a metric of them."""
        return f"{name}, {self.whose}" if self.whose else name


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

    def vectors(view: View) -> Tensor:
        encoded = student(view, None, () if tap is None else (tap,))
        num_prefix = encoded.prefix.shape[1]
        if pool == "class" and not num_prefix:
            raise ValueError("the student has no class token; use pool=mean")
        sequence = torch.cat([encoded.prefix, encoded.tokens], 1) if tap is None else encoded.taps[tap]
        sequence = sequence.float()
        return sequence[:, num_prefix:].mean(1) if pool == "mean" else sequence[:, 0]

    values, labels = _read(vectors, _batches(source, student.geometry.image, batch), device, precision)
    student.train(training)
    layer = "final norm" if block is None else f"block {block}"
    what = "mean of patch tokens" if pool == "mean" else "class token"
    described = f"{layer}, {what}" + ("" if precision == "float32" else f", {precision}")
    return Features(values, labels, described)


@torch.no_grad()
def teacher_features(
    teacher: Teacher,
    size: Size,
    source: ImageSource,
    device: str = "cpu",
    precision: str = "float32",
    batch: int = 256,
) -> Features:
    """One vector an image: (1/N) sum_i T(I)_i, the mean of a dense teacher's target tokens, before their norm.

    Central square, cut as the teacher asks for it, or at `size`, the student's. Teachers made of the student compute in
    `precision`, others in their own. The teacher stays on `device`, in eval mode.
    """
    teacher = teacher.to(device).eval()
    renditions = () if teacher.rendition is None else (teacher.rendition,)
    batches = _batches(source, size, batch, renditions)
    values, labels = _read(lambda view: teacher(view).tokens.float().mean(1), batches, device, precision)
    return Features(values, labels, f"teacher {teacher.config.label}, mean of tokens", "teacher")


def pixel_features(source: ImageSource, size: Size, batch: int = 256) -> Features:
    """The pixels themselves (n, 3 H W) in [0, 1]: what features must beat."""
    values, labels = [], []
    for view, numbers in _batches(source, size, batch):
        values.append(view.image.flatten(1).float() / 255)
        labels += numbers
    return Features(torch.cat(values), torch.tensor(labels), f"pixels at {size[0]}x{size[1]}")


def _read(
    vectors: Callable[[View], Tensor], batches: Iterator[tuple[View, list[int]]], device: str, precision: str
) -> tuple[Tensor, Tensor]:
    """vectors (b, D) of every batch on the CPU, and the labels (n,)."""
    values, labels = [], []
    for view, numbers in batches:
        with torch.autocast(torch.device(device).type, torch.bfloat16, precision == "bfloat16"):
            values.append(vectors(view.to(device)).cpu())
        labels += numbers
    return torch.cat(values), torch.tensor(labels)


def _batches(
    source: ImageSource, size: Size, batch: int, renditions: Sequence[Rendition] = ()
) -> Iterator[tuple[View, list[int]]]:
    """Views of b images, uint8, and their labels, in order; unreadable images are left out."""
    views = Center(Center.Config())
    no_draw: Any = None  # a central crop draws nothing
    images, labels = [], []
    for index in range(len(source)):
        try:
            image = source.read(index)
        except BadImage:
            continue
        images.append(views.sample(image, no_draw, size, renditions)["main"])
        labels.append(source.label(index))
        if len(images) == batch:
            yield stack(images), labels
            images, labels = [], []
    if images:
        yield stack(images), labels


def standardize(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """(x - mean) / std by the statistics of the training features, column by column; as batch norm without affine does."""
    mean, std = train.mean(0), train.std(0, correction=0)
    scale = 1 / std.clamp_min(1e-6)
    return (train - mean) * scale, (test - mean) * scale
