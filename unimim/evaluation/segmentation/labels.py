"""From the class ids of a data set to those a model learns."""

from __future__ import annotations

import torch
from torch import Tensor

from ...engine.data.decode import BadImage
from ...engine.data.sources import ImageSource

IGNORED = 255
"""The id of pixels that count nowhere, in training and in the score."""


class Relabelled:
    """An annotated source whose ids are 0 to num_classes - 1, or IGNORED.

    ignored: one more id of the data set that counts nowhere (CamVid: 11).  zero_is_ignored: 0 counts nowhere and every
    other id moves down by one (ADE20K; mmseg's reduce_zero_label).
    """

    def __init__(
        self, source: ImageSource, num_classes: int, ignored: int | None = None, zero_is_ignored: bool = False
    ) -> None:
        self.source, self.classes = source, source.classes
        ids = torch.arange(256)
        if ignored is not None:
            ids[ignored] = IGNORED
        if zero_is_ignored:
            ids = torch.where(ids == IGNORED, IGNORED, ids - 1)
            ids[0] = IGNORED
        self.known = (ids < num_classes) | (ids == IGNORED)
        self.ids, self.num_classes = ids.to(torch.uint8), num_classes

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int) -> Tensor:
        """(4, H, W) uint8: RGB and class. BadImage when a pixel has an id of no class."""
        image = self.source.read(index).clone()
        given = image[3].long()
        if not self.known[given].all():
            unknown = int(given[~self.known[given]][0])
            reason = (
                f"its annotation holds the id {unknown}, which is none of {self.num_classes} classes and is not ignored"
            )
            raise BadImage(self.name(index), f"{reason}: set num_classes, ignored or zero_is_ignored")
        image[3] = self.ids[given]
        return image

    def label(self, index: int) -> int:
        return self.source.label(index)

    def fingerprint(self) -> str:
        return self.source.fingerprint()
