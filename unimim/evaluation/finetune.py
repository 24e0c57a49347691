"""Fine-tuning on labels, end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator

from ..axes import Student
from ..engine.data.sources import ImageSource
from ..engine.run import Plan
from ..recipe import Recipe
from ..schedule import Optimization
from ..types import Batch, View
from ..world import rank, whole
from .augment import augment
from .classifier import ABOUT, CentralCrop, Classifier, Mixing, correct, save_classifier, start
from .protocol import Protocol, Setting, Subject, finish, finished, on_labels
from .score import Score, accuracy
from .supervised import Preempted, train_supervised, working

ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05, "min_lr": 1e-6, "no_decay": ("pos_embed", "prefix")}
TABLE13: Mapping[int, Mapping[str, Any]] = {
    12: {"lr": 5e-4, "epochs": 100, "warmup_epochs": 20, "layer_decay": 0.65, "drop_path": 0.1},
    24: {"lr": 5e-4, "epochs": 50, "warmup_epochs": 5, "layer_decay": 0.8, "drop_path": 0.2},
    32: {"lr": 2e-4, "epochs": 30, "warmup_epochs": 5, "layer_decay": 0.85, "drop_path": 0.25},
}
"""The paper's settings by the student's number of blocks: base, large and huge. Elsewhere the paper says 0.75 for large."""
MICRO = {"lr": 1e-3, "epochs": 20, "warmup_epochs": 2, "layer_decay": 0.75, "drop_path": 0.1}
"""Ours, for students of any other depth."""


class FineTune(Protocol):
    """All of the student and a linear classifier, trained on labels; BEiT's recipe with the paper's Table 13 by size.

    student: fields of the student that fine-tuning changes.  pool: what the classifier reads, see `Classifier`.
    crop: share of the area that a training crop takes.  crop_share: of the shorter side that the test crop takes.
    augment: timm's name of an automatic augmentation, "" for none.  erasing: chance of random erasing.  mixup, cutmix: alpha;
    mix_chance: of either; switch_chance: of CutMix when both are on.  from_scratch: start values instead of weights, the
    baseline at equal steps.  test_every_epoch: also tell the best epoch, which is chosen on the test images and flatters.
    Follows microsoft/unilm @ 768a3c8, beit2/run_class_finetuning.py. Deviations: tables are resampled by the splines of
    `resize_relative`; batches are mixed on the device, with one draw for all processes.
    """

    task: ClassVar[str] = "finetune"
    trains: ClassVar[bool] = True

    epochs: float = Field(gt=0)
    batch: int = Field(1024, gt=0)
    optimization: Optimization
    student: Mapping[str, Any] = Field(default_factory=dict)
    pool: Literal["mean", "class"] = "mean"
    init_scale: float = Field(1e-3, gt=0)
    crop: tuple[float, float] = (0.08, 1.0)
    crop_share: float = Field(0.875, gt=0, le=1)
    augment: str = "rand-m9-mstd0.5-inc1"
    erasing: float = Field(0.25, ge=0, le=1)
    mixup: float = Field(0.8, ge=0)
    cutmix: float = Field(1.0, ge=0)
    mix_chance: float = Field(1.0, ge=0, le=1)
    switch_chance: float = Field(0.5, ge=0, le=1)
    smoothing: float = Field(0.1, ge=0, lt=1)
    from_scratch: bool = False
    test_every_epoch: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(0, ge=0, lt=2**32)

    @field_validator("crop")
    @classmethod
    def _a_range(cls, crop: tuple[float, float]) -> tuple[float, float]:
        if not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(f"crop is a range of area shares in (0, 1], not {crop}")
        return crop

    @classmethod
    def defaults(cls, recipe: Recipe) -> Mapping[str, Any]:
        """Table 13's settings for the student's depth, and ours for any other and for small images."""
        student = recipe.student
        settings = dict(TABLE13.get(student.num_blocks, MICRO))
        changed = on_labels(recipe, settings.pop("drop_path"))
        small = min(student.geometry.image) < 96
        ours = {"batch": 128, "crop": (0.35, 1.0), "crop_share": 1.0, "erasing": 0.0} if small else {}
        epochs = settings.pop("epochs")
        policy = ADAMW | {key: value for key, value in settings.items() if key != "drop_path"}
        return {"epochs": epochs, "optimization": policy, "student": changed, "precision": recipe.precision, **ours}

    def check(self, subject: Subject, setting: Setting) -> None:
        if self.mixed and self.batch % 2:
            raise ValueError(f"finetune.batch: {self.batch} must be even, as images are mixed in pairs")
        if self.pool == "class" and not subject.recipe.student.num_prefix:
            raise ValueError("finetune.pool: the student has no class token; use finetune.pool=mean")
        self.start(subject)
        self.plan(setting.open("train"))

    @property
    def mixed(self) -> bool:
        return self.mix_chance > 0 and self.mixup + self.cutmix > 0

    def plan(self, source: ImageSource) -> Plan:
        return Plan(len(source), self.batch, self.epochs, self.seed, self.precision, self.optimization)

    def start(self, subject: Subject) -> Student:
        torch.manual_seed(self.seed)
        return subject.start(self.task, self.student, self.from_scratch)

    def measure(self, subject: Subject, setting: Setting) -> list[Score]:
        train, test = setting.open("train"), setting.open("val")
        folder = subject.place(self, f"{train.fingerprint()}-{test.fingerprint()}")
        found = finished(folder)
        if found:
            (folder / ABOUT).touch()  # the one that robustness and shape bias ask is the one last asked for
            return found
        run = setting.run.model_copy(update={"out": folder})
        with working(run) as device:
            student = self.start(subject)
            labels = [train.label(index) for index in range(len(train))]
            mixing = (
                Mixing(self.mixup, self.cutmix, self.mix_chance, self.switch_chance, self.seed) if self.mixed else None
            )
            model = Classifier(student, len(train.classes), self.pool, self.init_scale, labels, mixing, self.smoothing)
            size = student.geometry.image
            sampling = augment(size, self.seed, self.crop, self.augment, self.erasing)
            prepare = CentralCrop(size, self.crop_share)
            blank = View(torch.zeros(2, student.geometry.channels, *size))
            model.freeze_unused(Batch({"main": blank}, {}, torch.arange(2)))
            count = partial(correct, model, test, prepare, run, device, self.precision, self.batch)
            counts: list[tuple[int, int]] = []  # of the epochs that this process has seen end

            def share() -> float:
                counts.append(count())
                return 100 * _share(*counts[-1])

            model.tester = share if self.test_every_epoch else None
            about = {"task": self.task, "settings": self.model_dump(mode="json"), "recipe": subject.recipe.data()}
            about |= {"data": setting.data, "weights": str(subject.folder)}
            if not train_supervised(model, train, sampling, self.plan(train), run, device, self.task, about):
                raise Preempted
            plan = self.plan(train)
            tested = counts and plan.total_steps % plan.steps_per_epoch == 0
            scores = self._scores(counts[-1] if tested else count(), model.best.tolist(), subject, len(train))
            state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
            if rank() == 0:
                recipe = subject.recipe.model_copy(update={"student": student.config})
                told = {
                    "start": start(subject, self.from_scratch),
                    "pool": self.pool,
                    "crop_share": self.crop_share,
                    "precision": self.precision,
                }
                save_classifier(folder, state, recipe, {**told, "described": scores[0].protocol}, train.classes)
                finish(folder, scores)
        return scores

    def _scores(self, counted: tuple[int, int], best: Sequence[float], subject: Subject, images: int) -> list[Score]:
        begun = f"{subject.recipe.name}: {start(subject, self.from_scratch)}"
        policy = self.optimization
        words = (
            f"{begun}; {self.epochs:g} epochs of {images} images in batches of {self.batch}, AdamW {policy.peak(self.batch):g}, "
            f"layer decay {policy.layer_decay}, {'mean of patch tokens' if self.pool == 'mean' else 'class token'}"
        )
        (right, total), (share, epoch) = counted, best
        scores = [accuracy(self.task, right, total, f"{words}; last epoch")]
        if epoch:
            told = f"{words}; best epoch ({epoch:g}), chosen on the test images"
            scores.append(accuracy(self.task, round(share / 100 * total), total, told, "top-1, best epoch"))
        return scores


def _share(right: int, total: int) -> float:
    return right / total if total else 0.0
