"""Segmentation: a class for every pixel, by UperNet on the student."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...axes import Student
from ...engine.checkpoint import write_text
from ...engine.data.annotated import open_annotated
from ...engine.data.decode import BadImage
from ...engine.data.sources import ImageSource, Split, in_memory
from ...engine.run import Plan
from ...recipe import Recipe
from ...schedule import Optimization
from ...types import View
from ...views import resize
from ...weights import write_tensors
from ...world import all_reduce_sum, rank, whole, world_size
from ..protocol import Protocol, Setting, Subject, finish, finished, on_labels
from ..score import Score
from ..supervised import Preempted, train_supervised, working
from .labels import Relabelled
from .metrics import agreement, areas, confusion, intervals
from .sliding import slide
from .transforms import Crops, fitted
from .upernet import UperNet, check_student, factors, resized

LARGE = {"lr": 4e-5, "layer_decay": 0.9, "drop_path": 0.2}
BEIT: Mapping[int, Mapping[str, float]] = {
    12: {"lr": 5e-5, "layer_decay": 0.75, "drop_path": 0.15},
    24: LARGE,
    32: LARGE,
}
"""BEiT v2's settings by the student's number of blocks: base and large; ours for huge."""
MICRO = {"lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.1}
"""Ours, for students of any other depth."""
TENSORS, CLASSES = "segmenter.safetensors", "classes.json"


class Segmentation(Protocol):
    """UperNet on all of the student, trained on images with a class for every pixel; BEiT v2's recipe for ADE20K.

    num_classes, ignored, zero_is_ignored: see `Relabelled`; ADE20K has 150 classes and its 0 is ignored, CamVid 11 and
    ignores 11. `shapes` needs none of them.
    size: side of training crops and test windows.  scale: longer and shorter side that images are resized to fit.  ratio:
    by what that is multiplied in training.  max_share: of one class in a crop, if it can be had.  channels: width of
    UperHead, the student's if None.  aux_channels, aux_weight: of the head on the third tap.  stride: share of the window
    between test windows, rounded down to whole pixels.  student: fields of it that are changed.  from_scratch: start values
    instead of weights, the baseline at equal steps.
    Follows unilm beit2/semantic_segmentation @ 768a3c8. Deviations: those of `Crops` and `UperNet`; the rate has its peak
    where the warm-up ends (there 1 % less); bfloat16 where the recipe has it, not float16.
    """

    task: ClassVar[str] = "segmentation"
    trains: ClassVar[bool] = True
    labelled: ClassVar[bool] = False

    num_classes: int | None = Field(None, ge=2, le=255)
    ignored: int | None = Field(None, ge=0, le=254)
    zero_is_ignored: bool = False
    size: int = Field(512, ge=16, le=2**13)
    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    max_share: float = Field(0.75, gt=0, le=1)
    channels: int | None = Field(None, gt=0, le=2**14)
    aux_channels: int = Field(256, gt=0, le=2**14)
    aux_weight: float = Field(0.4, ge=0)
    stride: float = Field(2 / 3, gt=0, le=1)
    steps: int = Field(160_000, gt=0)
    warmup_steps: int = Field(1500, ge=0)
    batch: int = Field(16, ge=2)
    optimization: Optimization
    student: Mapping[str, Any] = Field(default_factory=dict)
    from_scratch: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(0, ge=0, lt=2**32)

    @field_validator("scale", "ratio")
    @classmethod
    def _in_order(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if not 0 < min(pair) <= max(pair) <= 2**14:
            raise ValueError(f"two numbers above 0 are wanted, not {pair}")
        return pair

    @field_validator("optimization")
    @classmethod
    def _warmed_up_in_steps(cls, policy: Optimization) -> Optimization:
        if policy.warmup_epochs:
            raise ValueError("the warm-up is counted in steps; set warmup_steps")
        return policy

    @classmethod
    def defaults(cls, recipe: Recipe) -> Mapping[str, Any]:
        """BEiT v2's settings for the student's depth, and ours for any other and for small images."""
        student = recipe.student
        settings = BEIT.get(student.num_blocks, MICRO)
        changed = on_labels(recipe, settings["drop_path"])
        policy = {"lr": settings["lr"], "layer_decay": settings["layer_decay"], "weight_decay": 0.05, "shape": "linear"}
        policy["no_decay"] = ("pos_embed", "prefix")
        side = min(student.geometry.image)
        small = {"size": side, "scale": (4 * side, side), "steps": 1000, "warmup_steps": 50, "aux_channels": 64}
        ours = small if side < 96 else {}
        return {"optimization": policy, "student": changed, "precision": recipe.precision, **ours}

    def check(self, subject: Subject, setting: Setting) -> None:
        check_student(subject.recipe.student)
        patch = subject.recipe.student.geometry.patch[0]
        if self.size % patch or self.size // patch * factors(patch)[-1] < 1:
            raise ValueError(
                f"segmentation.size: {self.size} is no multiple of the student's patch of {patch} pixels, or leaves the "
                "coarsest level, of stride 32, without a pixel"
            )
        if setting.run.micro_batch is not None:
            raise ValueError("segmentation normalizes over the whole batch, so it cannot be split; unset --micro-batch")
        self.start(subject)
        self.plan(self.open(setting, "train"))
        self.open(setting, "val")

    def open(self, setting: Setting, split: Split) -> Relabelled:
        """One split of the images (4, H, W) with their classes. ValueError if there are none, or nobody says how many."""
        source = open_annotated(setting.data, split)
        known = self.num_classes or len(source.classes)
        if not known:
            raise ValueError(
                f"segmentation.num_classes: {setting.data} does not tell how many classes it has; ADE20K has 150 "
                "(and needs segmentation.zero_is_ignored=true)"
            )
        return Relabelled(in_memory(source) if setting.cached else source, known, self.ignored, self.zero_is_ignored)

    def plan(self, source: ImageSource) -> Plan:
        per_epoch = max(len(source) // self.batch, 1)
        policy = self.optimization.model_copy(update={"warmup_epochs": self.warmup_steps / per_epoch})
        return Plan(len(source), self.batch, self.steps / per_epoch, self.seed, self.precision, policy)

    def start(self, subject: Subject) -> Student:
        """The student to train, for crops of `size`."""
        return subject.start(self.task, self.student, self.from_scratch, image_size=self.size)

    def model(self, subject: Subject, num_classes: int) -> UperNet:
        """With the start values that `seed` gives."""
        torch.manual_seed(self.seed)
        return UperNet(self.start(subject), num_classes, self.channels, self.aux_channels, self.aux_weight)

    def measure(self, subject: Subject, setting: Setting) -> list[Score]:
        train, test = self.open(setting, "train"), self.open(setting, "val")
        folder = subject.place(self, f"{train.fingerprint()}-{test.fingerprint()}")
        found = finished(folder)
        if found:
            return found
        run = setting.run.model_copy(update={"out": folder})
        with working(run) as device:
            model = self.model(subject, train.num_classes)
            sampling = Crops(self.seed, self.size, self.scale, self.ratio, self.max_share)
            blank = torch.zeros(4, self.size, self.size, dtype=torch.uint8)
            model.freeze_unused(sampling.collate([sampling(blank, 0, index) for index in range(2)]))
            about = {"task": self.task, "settings": self.model_dump(mode="json"), "recipe": subject.recipe.data()}
            about |= {"data": setting.data, "weights": str(subject.folder)}
            if not train_supervised(model, train, sampling, self.plan(train), run, device, self.task, about):
                raise Preempted
            state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
            # Test images take different numbers of passes, for which processes that share weights would wait.
            model = self.model(subject, train.num_classes)
            model.load_state_dict(state)
            tested = self.areas(model.to(device).eval(), test, setting, device)
            scores = self.scores(tested, subject, len(train))
            if rank() == 0:
                write_tensors(folder / TENSORS, state)
                write_text(folder / CLASSES, json.dumps(_by_class(tested.sum(0), train.classes), indent=1))
                finish(folder, scores)
        return scores

    @torch.no_grad()
    def areas(self, model: UperNet, test: Relabelled, setting: Setting, device: torch.device) -> Tensor:
        """(n, 3, C): areas of each test image that could be read, over all processes."""
        found = torch.zeros(len(test), 3, test.num_classes, dtype=torch.int64)
        read = torch.zeros(len(test), dtype=torch.int64)

        def logits_of(windows: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, self.precision == "bfloat16"):
                return model.answers(View(windows))

        images = DataLoader(_Shown(test, self.scale), batch_size=None, num_workers=setting.run.workers)
        for done, (index, image, labels) in enumerate(images, 1):
            if image is not None:
                logits = slide(logits_of, image.to(device), self.size, max(1, int(self.size * self.stride)))
                predicted = resized(logits[None], labels.shape)[0].argmax(0)
                found[index] = areas(confusion(predicted.cpu(), labels, test.num_classes))
                read[index] = 1
            if done % 100 == 0:
                setting.say(f"{done} of {len(images)} images tested")
        found, read = all_reduce_sum(found.to(device)).cpu(), all_reduce_sum(read.to(device)).cpu()
        if not found[:, 1].any():
            raise ValueError("no test image has a pixel that counts; check num_classes, ignored and zero_is_ignored")
        return found[read > 0]

    def scores(self, tested: Tensor, subject: Subject, num_images: int) -> list[Score]:
        start = "start values" if self.from_scratch else f"{subject.recipe.name}'s weights"
        words = (
            f"{start}; UperNet, {self.steps} steps of {self.batch} crops of {self.size} pixels from {num_images} images, "
            f"AdamW {self.optimization.peak(self.batch):g}, layer decay {self.optimization.layer_decay}; windows with stride "
            f"{int(self.size * self.stride)} on images within {max(self.scale)} x {min(self.scale)}; {len(tested)} test images"
        )
        values = agreement(tested.sum(0))
        names = ("mIoU", "pixel accuracy", "mean accuracy")
        return [
            Score(self.task, name, round(float(value), 2), "%", (round(low, 2), round(high, 2)), words)
            for name, value, (low, high) in zip(names, values, intervals(tested, self.seed), strict=True)
        ]


class _Shown(Dataset[Any]):
    """This process's share of the test images: (index, image (3, h, w) resized, classes (H, W)), None if unreadable."""

    def __init__(self, source: Relabelled, scale: tuple[int, int]) -> None:
        self.source, self.scale = source, scale

    def __len__(self) -> int:
        return len(range(rank(), len(self.source), world_size()))

    def __getitem__(self, place: int) -> tuple[int, Tensor | None, Tensor | None]:
        index = rank() + place * world_size()
        try:
            image = self.source.read(index)
        except BadImage:
            return index, None, None
        size = fitted((image.shape[-2], image.shape[-1]), *self.scale)
        return index, resize(image[:3], size, "bilinear"), image[3]


def _by_class(total: Tensor, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """IoU in percent and labelled pixels of each class; null where a class is neither labelled nor predicted."""
    hit, labelled, predicted = total.tolist()
    rows = []
    for number, (right, own, guessed) in enumerate(zip(hit, labelled, predicted, strict=True)):
        union = own + guessed - right
        iou = round(100 * right / union, 2) if union else None
        rows.append({"class": classes[number] if classes else number, "iou": iou, "pixels": own})
    return rows
