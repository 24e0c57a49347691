"""Accuracy of a fine-tuned classifier on images that are harder, drawn or painted: ImageNet-A, -R and -Sketch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.data.sources import ImageSource
from ..registry import did_you_mean
from ..types import Size
from .classify import Classify, answers
from .score import Score, accuracy

SHARE = 224 / 256
"""Side of the evaluated square in parts of the shorter side: resized to 256, of which 224 are shown, as in fine-tuning."""


def subset(classes: Sequence[str], folders: Sequence[str], where: str) -> list[int]:
    """The places among the classifier's `classes` of the class folders of a data set, in the folders' order.

    Raises ValueError for folders that are no class of the classifier.
    """
    place = {name: number for number, name in enumerate(classes)}
    strange = [name for name in folders if name not in place]
    if not folders:
        raise ValueError(f"{where} has no labels; put the images into folders by class")
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


def robustness(
    classify: Classify, classes: Sequence[str], source: ImageSource, indices: Sequence[int], size: Size, where: str
) -> Score:
    """Top-1 on the images `indices` of a source, among the classes that the source has.

    `where` names the data in messages and in the metric. The image is shown as fine-tuning shows it: SHARE of its central
    square at `size`.
    """
    among = subset(classes, source.classes, where)
    correct = total = 0
    for read, logits in answers(classify, source, indices, size, SHARE):
        labels = torch.tensor([source.label(index) for index in read])
        correct += int((choose(logits, among) == labels).sum())
        total += len(read)
    if not total:
        raise ValueError(f"{where}: none of its {len(indices)} images can be read")
    few = (
        f"the {len(among)} classes of the set, of {len(classes)}" if len(among) < len(classes) else f"all {len(among)}"
    )
    return accuracy("robustness", correct, total, f"argmax over {few}; central {SHARE:.3g} at {size[0]}x{size[1]}")
