"""The fine-tuned classifier that a measurement asks, and its answers to images that are only ever tested on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..engine.data.sources import ImageSource, open_source
from ..engine.run import Run
from .classifier import ABOUT, CentralCrop, Trained, load_classifier, start
from .protocol import Subject
from .supervised import answers


def finetuned(subject: Subject, folder: Path | None) -> Trained:
    """The classifier in `folder`, or in the fine-tuning of the subject's weights, done under its home, that was last asked for.

    ValueError if there is none.
    """
    if folder is None:
        found = subject.home.glob(f"eval/finetune-*/{ABOUT}")
        done = [
            path.parent for path in found if json.loads(path.read_text(encoding="utf-8"))["start"] == start(subject)
        ]
        if not done:
            command = f"unimim eval {subject.home} --task finetune --data D"
            raise ValueError(f"{subject.home} has no fine-tuned classifier yet; first do: {command}")
        folder = max(done, key=lambda place: (place / ABOUT).stat().st_mtime_ns)
    return load_classifier(folder)


def open_tests(spec: str) -> ImageSource:
    """The images of a data set that is only tested on: of its val folder, else all."""
    return open_source(spec, "val", hold_out=False)


def ask(
    trained: Trained, source: ImageSource, run: Run, batch: int, whole: bool = False
) -> Iterator[tuple[list[int], Tensor]]:
    """(indices, logits (b, C)) of a source's readable images. whole: show the central square uncut, not fine-tuning's crop."""
    prepare = CentralCrop(trained.model.student.geometry.image, 1.0) if whole else trained.prepare
    device = torch.device(run.device)
    return answers(trained.model.to(device), source, prepare, run, device, trained.precision, batch)
