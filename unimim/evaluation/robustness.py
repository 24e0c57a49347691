"""Accuracy of a fine-tuned classifier on images that are harder, drawn or painted: ImageNet-A, -R and -Sketch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ..engine.data.sources import ImageSource
from ..registry import did_you_mean
from .finetuned import ask, finetuned, open_tests
from .protocol import Protocol, Setting, Subject
from .score import Score, accuracy

Given = Iterable[tuple[Sequence[int], Tensor]]
"""Indices of images and their logits (b, C), in batches."""


def title(where: str) -> str:
    """What a data set is called in a score: the last name of its path."""
    return PurePath(where).name


def unlabelled(where: str) -> str:
    return f"{where} has no labels; put the images into folders by class"


def subset(classes: Sequence[str], folders: Sequence[str], where: str) -> list[int]:
    """The places among the classifier's `classes` of the class folders of a data set, in the folders' order.

    Raises ValueError for folders that are no class of the classifier.
    """
    place = {name: number for number, name in enumerate(classes)}
    strange = [name for name in folders if name not in place]
    if not folders:
        raise ValueError(unlabelled(where))
    if strange:
        listed = "; ".join(f"{name!r}{did_you_mean(name, classes)}" for name in strange[:5])
        more = f"; and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise ValueError(
            f"{where}: {len(strange)} of its {len(folders)} class folders are no class of the classifier, "
            f"which knows {len(classes)}: {listed}{more}"
        )
    return [place[name] for name in folders]


def choose(logits: Tensor, among: Sequence[int]) -> Tensor:
    """argmax over the logits (n, C) of the classes `among`, as a place in `among` (n,).

    The argmax over all C answers another question and is far lower where `among` is a fifth of them: an image of a class
    in the set may then be called one that is not in it (microsoft/unilm @ 768a3c8, beit2/run_class_finetuning.py, keeps
    the head's rows of the 200 classes of ImageNet-A and -R).
    """
    return logits[:, torch.tensor(among)].argmax(1)


def robustness(given: Given, classes: Sequence[str], source: ImageSource, where: str, how: str) -> Score:
    """Top-1 of the answers `given` to images of a source, among the classes that the source has.

    classes: of the classifier.  where: the data, in messages and in the metric.  how: the rest of the protocol.
    """
    among = subset(classes, source.classes, where)
    correct = total = 0
    for indices, logits in given:
        labels = torch.tensor([source.label(index) for index in indices], dtype=torch.int64)
        correct += int((choose(logits, among) == labels).sum())
        total += len(indices)
    if not total:
        raise ValueError(f"{where}: none of its {len(source)} images can be read")
    few = (
        f"the {len(among)} classes of the set, of {len(classes)}" if len(among) < len(classes) else f"all {len(among)}"
    )
    return accuracy("robustness", correct, total, f"argmax over {few}; {how}", f"top-1, {title(where)}")


class Robustness(Protocol):
    """Top-1 of a fine-tuned classifier on other images of its classes, none of which it was trained on.

    data: what `open_source` takes, one or more; () is the --data itself. Their class folders tell which of the classifier's
    classes may be answered.  finetuned: folder of the classifier; None is the newest fine-tuning of the same student.
    Images are shown as in the fine-tuning's own test.
    """

    task: ClassVar[str] = "robustness"

    data: tuple[str, ...] = ()
    finetuned: Path | None = None
    batch: int = Field(64, gt=0)

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_more(cls, data: object) -> object:
        return (data,) if isinstance(data, str) else data

    @field_validator("data")
    @classmethod
    def _told_apart(cls, data: tuple[str, ...]) -> tuple[str, ...]:
        if len({title(spec) for spec in data}) < len(data):
            raise ValueError("scores are told apart by the data's last name, and two are alike")
        return data

    def check(self, subject: Subject, setting: Setting) -> None:
        for spec in self.data or (setting.data,):
            if not open_tests(spec).classes:
                raise ValueError(unlabelled(spec))

    def measure(self, subject: Subject, setting: Setting) -> list[Score]:
        trained = finetuned(subject, self.finetuned)
        sources = {spec: open_tests(spec) for spec in self.data or (setting.data,)}
        for spec, source in sources.items():
            subset(trained.classes, source.classes, spec)
        scores = []
        for spec, source in sources.items():
            setting.say(f"asking about {len(source)} images of {spec}")
            given = ask(trained, source, setting.run, self.batch)
            scores.append(
                robustness(given, trained.classes, source, spec, f"shown as in the test of: {trained.described}")
            )
        return scores
