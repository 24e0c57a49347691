"""Linear classifiers trained by gradient on frozen, augmented images: MAE's and BEiT's linear probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..axes import Student
from ..engine.run import Plan
from ..recipe import Recipe
from ..schedule import Optimization
from ..types import Batch, Tap, View
from ..world import all_reduce_sum, rank
from .augment import augment
from .classifier import CentralCrop
from .features import Reading
from .protocol import Protocol, Setting, Subject, finish, finished
from .score import Score, accuracy
from .supervised import Preempted, Supervised, answers, train_supervised, working


class LinearHeads(Supervised):
    """logits_l = W_l z(f_l) + b_l for several places l of a frozen student; their cross-entropies add.

    f_l (B, D) is what `pool` makes of place l: the mean of the patch tokens, the class token, or both one after the other
    (B, 2 D). places: blocks (0-based, without the final norm), or None for after it.  z: BatchNorm without affine, eps
    1e-6, momentum 0.1, statistics of each process alone, if batch_norm. W starts truncated-normal (0.01), b as nn.Linear's.
    """

    labels: Tensor

    def __init__(
        self,
        student: Student,
        num_classes: int,
        places: Sequence[int | None],
        pool: Literal["mean", "class", "both"],
        batch_norm: bool,
        labels: Sequence[int] = (),
    ) -> None:
        super().__init__(student, frozen=True)
        self.places, self.pool = tuple(places), pool
        self.taps = tuple(Tap(place) for place in self.places if place is not None)
        dim = student.dim * (2 if pool == "both" else 1)
        norms = [nn.BatchNorm1d(dim, eps=1e-6, affine=False) if batch_norm else nn.Identity() for _ in self.places]
        self.norms = nn.ModuleList(norms)
        self.heads = nn.ModuleList(nn.Linear(dim, num_classes) for _ in self.places)
        for head in self.heads:
            nn.init.trunc_normal_(head.weight, std=0.01)  # type: ignore[arg-type]
        self.register_buffer("labels", torch.tensor(labels, dtype=torch.int64), persistent=False)

    def answers(self, view: View) -> Tensor:
        """Logits (B, classes, places)."""
        with torch.no_grad():
            encoded = self.student(view, None, self.taps)
        prefix = encoded.prefix.shape[1]
        whole = torch.cat([encoded.prefix, encoded.tokens], 1)
        found = []
        for place, norm, head in zip(self.places, self.norms, self.heads, strict=True):
            sequence = (whole if place is None else encoded.taps[Tap(place)]).float()
            mean, first = sequence[:, prefix:].mean(1), sequence[:, 0]
            both = {"mean": mean, "class": first, "both": torch.cat([first, mean], 1)}
            found.append(head(norm(both[self.pool])))
        return torch.stack(found, 2)

    def image_losses(self, batch: Batch) -> Tensor:
        logits = self.answers(batch.views["main"]).float()
        labels = self.labels[batch.index].unsqueeze(1).expand(-1, len(self.places))
        return F.cross_entropy(logits, labels, reduction="none").sum(1)


class LinearMAE(Protocol):
    """MAE's linear probe: LARS on BatchNorm without affine, one place of the frozen student.

    Follows facebookresearch/mae @ efb2a80, main_linprobe.py and util/lars.py. Deviation: timm's random crop, which tries
    ten times where the official one clamps after one.
    """

    task: ClassVar[str] = "linear-mae"
    trains: ClassVar[bool] = True

    features: Reading = Reading()
    epochs: float = Field(90, gt=0)
    batch: int = Field(16384, gt=0)
    optimization: Optimization = Optimization(
        lr=0.1, lr_per_256=True, warmup_epochs=10, weight_decay=0, optimizer="lars"
    )
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(0, ge=0, lt=2**32)

    @classmethod
    def defaults(cls, recipe: Recipe) -> Mapping[str, Any]:
        """The class token, if there is one, as published; 50 epochs for large and huge; small batches for small images."""
        pool = "class" if recipe.student.num_prefix else "mean"
        epochs = 50 if recipe.student.num_blocks > 12 else 90
        small = {"batch": 512} if min(recipe.student.geometry.image) < 96 else {}
        return {"features": {"pool": pool}, "epochs": epochs, "precision": recipe.precision, **small}

    def check(self, subject: Subject, setting: Setting) -> None:
        if self.features.of == "teacher":
            raise ValueError("linear-mae.features.of=teacher: it trains on the student; use linear for the teacher")
        self.features.check(subject.recipe)
        _plan(self, len(setting.open("train")))

    def measure(self, subject: Subject, setting: Setting) -> list[Score]:
        places, pool = (self.features.block,), self.features.pool
        return _measure(self, subject, setting, places, pool, True)


class LinearBEiT(Protocol):
    """BEiT's linear probe: a classifier for every block on its class token and the mean of its patches, without final norm;
    AdamW. The best block is chosen on the test images, as published, and flatters; every block is told.

    Follows microsoft/unilm @ 768a3c8, beit/run_linear_eval.py.
    """

    task: ClassVar[str] = "linear-beit"
    trains: ClassVar[bool] = True

    epochs: float = Field(100, gt=0)
    batch: int = Field(1024, gt=0)
    optimization: Optimization = Optimization(lr=1e-3, lr_per_256=True, weight_decay=1e-4)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(0, ge=0, lt=2**32)

    @classmethod
    def defaults(cls, recipe: Recipe) -> Mapping[str, Any]:
        small = {"batch": 512} if min(recipe.student.geometry.image) < 96 else {}
        return {"precision": recipe.precision, **small}

    def check(self, subject: Subject, setting: Setting) -> None:
        if not subject.recipe.student.num_blocks:
            raise ValueError(f"linear-beit reads blocks, and {subject.recipe.student.name} has none; use linear-mae")
        _plan(self, len(setting.open("train")))

    def measure(self, subject: Subject, setting: Setting) -> list[Score]:
        student = subject.recipe.student
        places = tuple(range(student.num_blocks))
        return _measure(self, subject, setting, places, "both" if student.num_prefix else "mean", False)


def _plan(protocol: LinearMAE | LinearBEiT, num_images: int) -> Plan:
    return Plan(num_images, protocol.batch, protocol.epochs, protocol.seed, protocol.precision, protocol.optimization)


def _measure(
    protocol: LinearMAE | LinearBEiT,
    subject: Subject,
    setting: Setting,
    places: tuple[int | None, ...],
    pool: Literal["mean", "class", "both"],
    batch_norm: bool,
) -> list[Score]:
    """Train the classifiers of all places at once, and score each, the best first if there are several."""
    train, test = setting.open("train"), setting.open("val")
    folder = subject.place(protocol, f"{train.fingerprint()}-{test.fingerprint()}")
    if done := finished(folder):
        return done
    run, size = setting.run.model_copy(update={"out": folder}), subject.student.geometry.image
    share = 1.0 if min(size) < 96 else 0.875
    with working(run) as device:
        torch.manual_seed(protocol.seed)
        labels = [train.label(index) for index in range(len(train))]
        model = LinearHeads(subject.student, len(train.classes), places, pool, batch_norm, labels)
        sampling = augment(size, protocol.seed)
        title = f"{protocol.task} of {subject.recipe.name}"
        about = {"task": protocol.task, "settings": protocol.model_dump(mode="json"), "data": setting.data}
        if not train_supervised(model, train, sampling, _plan(protocol, len(train)), run, device, title, about):
            raise Preempted
        counts = torch.zeros(len(places) + 1, dtype=torch.float64)
        prepare = CentralCrop(size, share)
        for indices, logits in answers(model, test, prepare, run, device, protocol.precision, protocol.batch):
            wanted = torch.tensor([test.label(index) for index in indices]).unsqueeze(1)
            right = (logits.argmax(1) == wanted).sum(0)
            counts += torch.cat([right, torch.tensor([len(indices)])])
        *rights, total = [int(count) for count in all_reduce_sum(counts.to(device)).tolist()]
        scores = _scores(protocol, places, pool, batch_norm, rights, total)
        if rank() == 0:
            finish(folder, scores)
    return scores


def _scores(
    protocol: LinearMAE | LinearBEiT,
    places: Sequence[int | None],
    pool: str,
    batch_norm: bool,
    rights: Sequence[int],
    total: int,
) -> list[Score]:
    what = {"mean": "mean of patch tokens", "class": "class token", "both": "class token and mean of patch tokens"}[
        pool
    ]
    norm, policy = "BatchNorm without affine" if batch_norm else "no norm", protocol.optimization
    how = (
        f"{what}, {norm}; {policy.optimizer.upper() if policy.optimizer == 'lars' else 'AdamW'}, peak rate "
        f"{policy.peak(protocol.batch):g}, {protocol.epochs:g} epochs in batches of {protocol.batch}"
    )
    names = ["final norm" if place is None else f"block {place}" for place in places]
    each = [
        accuracy(protocol.task, right, total, f"{name}, {how}", f"top-1, {name}" if len(names) > 1 else "top-1")
        for name, right in zip(names, rights, strict=True)
    ]
    if len(each) == 1:
        return each
    best = max(range(len(rights)), key=rights.__getitem__)
    told = f"{names[best]}, the best of {len(names)} on the test images, {how}"
    return [accuracy(protocol.task, rights[best], total, told), *each]
