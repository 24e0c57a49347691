"""UperNet on a plain vision transformer, as BEiT builds it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...axes import Student
from ...layers import BatchNorm
from ...types import Batch, Size, Tap, View
from ..supervised import Supervised
from .labels import IGNORED

POOLS = (1, 2, 3, 6)
"""Bins a side of the pyramid pooling."""


def taps(depth: int) -> tuple[Tap, ...]:
    """The outputs of blocks round(depth (1/3, 1/2, 2/3, 1)): for 12 and 24 blocks BEiT's 3, 5, 7, 11 and 7, 11, 15, 23."""
    return tuple(Tap(max(round(depth * share), 1) - 1) for share in (1 / 3, 1 / 2, 2 / 3, 1))


def factors(patch: int) -> tuple[float, ...]:
    """By how much each tap is enlarged: q / 4, q / 8, q / 16, q / 32, where q is the power of two next to the patch's side.

    That gives strides 4, 8, 16 and 32 where patch = q, as BEiT has for patches of 16 and 8; 14 is taken as 16, which makes
    the strides 3.5, 7, 14, 28 pixels. ValueError for patches outside [3, 45].
    """
    power = 2 ** round(math.log2(patch))
    if not 4 <= power <= 32:
        raise ValueError(f"segmentation takes students with patches of 3 to 45 pixels, not {patch}")
    return tuple(power / stride for stride in (4, 8, 16, 32))


class BatchNorm2d(BatchNorm):
    """Over the whole batch of all processes, on any device."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, world=True)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def conv(dim: int, out: int, kernel: int) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU; mmcv's start values."""
    layer = nn.Conv2d(dim, out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, BatchNorm2d(out), nn.ReLU())


def classifier(dim: int, num_classes: int) -> nn.Sequential:
    """Dropout of whole channels, then one linear map for all positions."""
    layer = nn.Conv2d(dim, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Dropout2d(0.1), layer)


def scaled(dim: int, factor: float) -> nn.Module:
    """Enlarge by 2 for each transposed convolution, with BatchNorm and GELU between two; or keep; or take maxima."""
    if factor <= 1:
        return nn.Identity() if factor == 1 else nn.MaxPool2d(round(1 / factor))
    layers: list[nn.Module] = []
    for _ in range(round(math.log2(factor))):
        between = [BatchNorm2d(dim), nn.GELU()] if layers else []
        layers += [*between, nn.ConvTranspose2d(dim, dim, 2, 2)]
    return nn.Sequential(*layers)


def resized(x: Tensor, size: Size) -> Tensor:
    """x (B, C, h, w) -> (B, C, *size), bilinear, corners not aligned."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def _size(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]


class PyramidPooling(nn.Module):
    """x and its means over 1, 2 x 2, 3 x 3 and 6 x 6 bins, each through a convolution, seen by one more."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(n), *conv(dim, channels, 1)) for n in POOLS)
        self.bottleneck = conv(dim + len(POOLS) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, h, w) -> (B, channels, h, w)."""
        seen: Tensor = self.bottleneck(torch.cat([x, *(resized(stage(x), _size(x)) for stage in self.stages)], 1))
        return seen


class UperHead(nn.Module):
    """Pyramid pooling on the coarsest level, added downwards level by level; all levels, fused at the finest size."""

    def __init__(self, dim: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pooling = PyramidPooling(dim, channels)
        self.laterals = nn.ModuleList(conv(dim, channels, 1) for _ in range(3))
        self.outputs = nn.ModuleList(conv(channels, channels, 3) for _ in range(3))
        self.fuse = conv(4 * channels, channels, 3)
        self.classifier = classifier(channels, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Four levels (B, dim, ., .), finest first -> logits (B, num_classes, ., .) of the finest's size."""
        sums = [self.pooling(levels[-1])]
        for lateral, level in zip(reversed(self.laterals), reversed(levels[:-1]), strict=True):
            own = lateral(level)
            sums.insert(0, own + resized(sums[0], _size(own)))
        ready = [*(output(x) for output, x in zip(self.outputs, sums[:-1], strict=True)), sums[-1]]
        logits: Tensor = self.classifier(self.fuse(torch.cat([resized(x, _size(ready[0])) for x in ready], 1)))
        return logits


class UperNet(Supervised):
    """A student, its taps as a pyramid, UperHead on it and, for training, a smaller head on the third tap.

    loss of an image = sum over its pixels that count of CE(head) + 0.4 CE(auxiliary head), over all its pixels (mmseg's
    mean, in which ignored pixels are zeros). channels: width of the head, the student's if None.
    Follows unilm beit2/semantic_segmentation @ 768a3c8 (backbone/beit.py) and mmseg 0.30 (uper_head.py, fcn_head.py), also
    in all start values. Deviation: the student normalizes pixels by its own statistics; there they are always ImageNet's.
    Raises ValueError for a student whose blocks are not one sequence of equal grids.
    """

    def __init__(
        self, student: Student, num_classes: int, channels: int | None = None, aux: int = 256, aux_weight: float = 0.4
    ) -> None:
        depth, patch = check_student(student.config), student.geometry.patch[0]
        super().__init__(student)
        self.taps, self.aux_weight = taps(depth), aux_weight
        self.pyramid = nn.ModuleList(scaled(student.dim, factor) for factor in factors(patch))
        self.head = UperHead(student.dim, channels or student.dim, num_classes)
        self.auxiliary = nn.Sequential(conv(student.dim, aux, 3), classifier(aux, num_classes))

    def levels(self, view: View) -> list[Tensor]:
        """Four maps (B, D, ., .) of view (B, 3, H, W), finest first."""
        encoded = self.student(view, None, self.taps)
        tokens = [encoded.taps[tap][:, encoded.prefix.shape[1] :] for tap in self.taps]
        planes = [x.unflatten(1, encoded.grid).permute(0, 3, 1, 2) for x in tokens]
        return [scale(plane) for scale, plane in zip(self.pyramid, planes, strict=True)]

    def answers(self, view: View) -> Tensor:
        """Logits (B, num_classes, H, W)."""
        return resized(self.head(self.levels(view)), _size(view.image))

    def image_losses(self, batch: Batch) -> Tensor:
        """Of views "main" and "labels" (B, 1, H, W) uint8."""
        levels, labels = self.levels(batch.views["main"]), batch.views["labels"].image[:, 0].long()
        losses = cross_entropy(self.head(levels), labels)
        return losses + self.aux_weight * cross_entropy(self.auxiliary(levels[2]), labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,): sum over pixels that count, over all pixels H W, from logits (B, C, h, w) enlarged to labels (B, H, W)."""
    whole = resized(logits.float(), (labels.shape[-2], labels.shape[-1]))
    return F.cross_entropy(whole, labels, ignore_index=IGNORED, reduction="none").flatten(1).mean(1)


def check_student(config: Student.Config) -> int:
    """Its number of blocks, if a pyramid can be made of them."""
    if not 1 <= config.num_blocks == config.num_layers:
        raise ValueError(
            f"segmentation reads blocks of one grid, as a ViT has; the student {config.name!r} is a pyramid, or names none"
        )
    if len({*config.geometry.patch}) > 1:
        raise ValueError(f"segmentation takes square patches, not {config.geometry.patch}")
    factors(config.geometry.patch[0])
    return config.num_blocks
