"""A student with a linear classifier on top: what fine-tuning trains, and what robustness and shape bias ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data import Mixup
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V

from ..axes import Student
from ..engine.checkpoint import write_text
from ..engine.data.sources import ImageSource
from ..engine.run import Run
from ..recipe import Recipe
from ..types import Batch, Size, Tap, View
from ..weights import check, write_tensors
from ..world import all_reduce_sum
from .augment import seeded
from .protocol import Subject
from .supervised import Prepare, Supervised, answers

MIX = 4
"""Purpose of a draw: how a batch is mixed. 1 to 3 are crops, masks and augmentations."""
TENSORS, ABOUT = "classifier.safetensors", "classifier.json"


@dataclass(frozen=True)
class Mixing:
    """timm's Mixup and CutMix of a batch with its reverse, drawn from (seed, step) and so alike in every process.

    mixup, cutmix: alpha of the beta distribution, 0 for never.  chance: of mixing at all.  switch: of CutMix, if both.
    """

    mixup: float
    cutmix: float
    chance: float
    switch: float
    seed: int

    def __call__(
        self, images: Tensor, labels: Tensor, num_classes: int, smoothing: float, step: int
    ) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W) float, labels (B,), B even -> mixed images and labels (B, num_classes), smoothed."""
        mix = Mixup(self.mixup, self.cutmix, None, self.chance, self.switch, "batch", True, smoothing, num_classes)
        with seeded(self.seed, step, MIX):
            return mix(images.clone(), labels)  # type: ignore[no-any-return]


class Classifier(Supervised):
    """logits = W LN(mean over patches of the last block's tokens) + b, the LN a fresh one (BEiT's and MAE's fc_norm).

    pool "class": the class token after the student's own final norm instead. W starts truncated-normal (0.02) times
    init_scale, b at zero.  labels (number of training images,): the class of each.
    Follows microsoft/unilm @ 768a3c8, beit2/modeling_finetune.py.
    """

    labels: Tensor

    def __init__(
        self,
        student: Student,
        num_classes: int,
        pool: Literal["mean", "class"] = "mean",
        init_scale: float = 1e-3,
        labels: Sequence[int] = (),
        mixing: Mixing | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(student)
        self.pool, self.num_classes, self.mixing, self.smoothing = pool, num_classes, mixing, smoothing
        blocks = student.config.num_blocks
        self.taps = (Tap(blocks - 1),) if blocks and pool == "mean" else ()
        self.fc_norm = nn.LayerNorm(student.dim, eps=1e-6) if pool == "mean" else nn.Identity()
        self.head = nn.Linear(student.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        self.head.weight.data.mul_(init_scale)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("labels", torch.tensor(labels, dtype=torch.int64), persistent=False)

    def answers(self, view: View) -> Tensor:
        """Logits (B, classes)."""
        encoded = self.student(view, None, self.taps)
        if self.pool == "class":
            feature = encoded.prefix[:, 0]
        elif self.taps:
            feature = encoded.taps[self.taps[0]][:, encoded.prefix.shape[1] :].mean(1)
        else:
            feature = encoded.tokens.mean(1)
        return self.head(self.fc_norm(feature))  # type: ignore[no-any-return]

    def image_losses(self, batch: Batch) -> Tensor:
        """Cross-entropy with the (mixed, smoothed) label of every image."""
        view, labels = batch.views["main"], self.labels[batch.index]
        if self.mixing is None:
            return self._cross_entropy(view, labels, self.smoothing)
        mixed, soft = self.mixing(view.pixels(), labels, self.num_classes, self.smoothing, self.progress.step)
        return self._cross_entropy(View(mixed), soft, 0.0)

    def _cross_entropy(self, view: View, labels: Tensor, smoothing: float) -> Tensor:
        logits = self.answers(view).float()
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


@dataclass(frozen=True)
class CentralCrop:
    """The central square: the shorter side resized to size / share (bicubic), then the middle of `size`."""

    size: Size
    share: float = 0.875

    def __call__(self, image: Tensor) -> Tensor:
        scale = max(self.size[0] / image.shape[-2], self.size[1] / image.shape[-1]) / self.share
        sides = [max(round(side * scale), want) for side, want in zip(image.shape[-2:], self.size, strict=True)]
        resized = V.resize(image, sides, V.InterpolationMode.BICUBIC, antialias=True)
        shown: Tensor = V.center_crop(resized, list(self.size))
        return shown


@dataclass(frozen=True)
class Trained:
    """A fine-tuned classifier as it is kept: the model (CPU, eval mode), its class names, and how it sees a test image."""

    model: Classifier
    classes: tuple[str, ...]
    prepare: Prepare
    precision: str
    described: str


def correct(
    model: Supervised, source: ImageSource, prepare: Prepare, run: Run, device: torch.device, precision: str, batch: int
) -> tuple[int, int]:
    """(images whose largest logit is that of their class, images that could be read), over all processes."""
    counts = torch.zeros(2, dtype=torch.float64)
    for indices, logits in answers(model, source, prepare, run, device, precision, batch):
        labels = torch.tensor([source.label(index) for index in indices])
        counts += torch.tensor([float((logits.argmax(1) == labels).sum()), len(indices)])
    right, total = all_reduce_sum(counts.to(device)).tolist()
    return int(right), int(total)


def save_classifier(
    folder: Path, state: dict[str, Tensor], recipe: Recipe, about: dict[str, Any], classes: Sequence[str]
) -> None:
    """Write the tensors and, last, what `load_classifier` builds them into: the changed student, the answer on top."""
    write_tensors(folder / TENSORS, state)
    record = {"recipe": recipe.data(), **about, "classes": list(classes)}
    write_text(folder / ABOUT, json.dumps(record, indent=1))


def start(subject: Subject, from_scratch: bool = False) -> str:
    """What a classifier was fine-tuned from: the student's weights, its momentum copy's, or start values."""
    return "start values" if from_scratch else "momentum copy" if subject.momentum else "student"


def load_classifier(folder: Path) -> Trained:
    """The classifier that a fine-tuning left in `folder`. ValueError if there is none, or its tensors do not fit."""
    if not (folder / ABOUT).is_file():
        raise ValueError(f"{folder} holds no fine-tuned classifier; unimim eval RUN --task finetune makes one")
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    student = Recipe.model_validate(about["recipe"]).student.build()
    model = Classifier(student, len(about["classes"]), about["pool"])
    state = load_file(folder / TENSORS)
    check(model.state_dict(), state, f"{folder / TENSORS} does not fit its {ABOUT}")
    model.load_state_dict(state)
    size = student.geometry.image
    return Trained(
        model.eval(),
        tuple(about["classes"]),
        CentralCrop(size, about["crop_share"]),
        about["precision"],
        about["described"],
    )
