"""What a teacher says of an image, rounded so that it can be kept, and as a row of bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from .types import Target

Precision = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class Replayed:
    """Targets that come again: whose, how they are kept, and in how many crops of each image.

    vocabulary: how many ids there are (None: vectors).  about: plain data, all that decides a target beside the image and
    the teacher's weights.
    """

    teacher: nn.Module
    precision: Precision
    vocabulary: int | None
    crops: int
    about: Mapping[str, Any]


def encode(x: Tensor, precision: Precision) -> tuple[Tensor, ...]:
    """x (..., D) as it is kept: (x,) at a floating precision; or q (..., D) int8 and m (..., 1) float32 with

    m = max |x|, q = round(127 x / m), by vector. A vector that is not finite has an m that is not.
    """
    if precision != "int8":
        return (x.to(getattr(torch, precision)),)
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True)
    return (x / largest * 127).round().nan_to_num(0, 0, 0).to(torch.int8), largest


def decode(kept: tuple[Tensor, ...]) -> Tensor:
    """What `encode` kept: x, or m (q / 127), of which `encode` keeps the same again; NaN where m is not finite."""
    if len(kept) == 1:
        return kept[0]
    levels, largest = kept
    # By a tensor: CUDA multiplies by the reciprocal of a number, and 127 / 127 would not be 1.
    return largest * (levels.float() / torch.full_like(largest, 127))


def rounded(target: Target, precision: Precision) -> Target:
    """Vectors as they come back when kept at `precision`; ids as they are, saliency in float32."""
    image = None if target.image is None else decode(encode(target.image, precision))
    tokens = decode(encode(target.tokens, precision)) if target.tokens.is_floating_point() else target.tokens
    return Target(tokens, image, None if target.saliency is None else target.saliency.float())


@dataclass(frozen=True)
class Layout:
    """How one image's target lies in a row of bytes: tokens, the image, saliency.

    tokens: shape of its tokens, (N, dim) or (N,).  image: width of its vector of the image, 0 if there is none.
    """

    precision: Precision
    vocabulary: int | None
    tokens: tuple[int, ...]
    image: int
    saliency: bool

    @classmethod
    def of(cls, target: Target, precision: Precision, vocabulary: int | None) -> Self:
        width = 0 if target.image is None else target.image.shape[-1]
        return cls(precision, vocabulary, tuple(target.tokens.shape[1:]), width, target.saliency is not None)

    @property
    def num_bytes(self) -> int:
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self._fields())

    def pack(self, target: Target) -> Tensor:
        """A target of B images -> rows (B, num_bytes) uint8. What `rounded` made comes back as it was."""
        ids = self._ids()
        kept = [*encode(target.tokens, self.precision)] if ids is None else [target.tokens.to(ids)]
        kept += [] if target.image is None else encode(target.image, self.precision)
        kept += [] if target.saliency is None else [target.saliency.float()]
        return torch.cat([_packed(part.flatten(1)).view(torch.uint8) for part in kept], 1)

    def unpack(self, rows: Tensor) -> Target:
        """Rows (B, num_bytes) uint8 -> the target of B images."""
        parts, first = [], 0
        for dtype, shape in self._fields():
            last = first + dtype.itemsize * math.prod(shape)
            parts.append(_packed(rows[:, first:last]).view(dtype).view(-1, *shape))
            first = last
        size = 2 if self.precision == "int8" else 1
        if self._ids() is None:
            tokens, parts = decode(tuple(parts[:size])), parts[size:]
        else:
            tokens, parts = parts[0].long(), parts[1:]
        image = decode(tuple(parts[:size])) if self.image else None
        return Target(tokens, image, parts[-1] if self.saliency else None)

    def _ids(self) -> torch.dtype | None:
        if self.vocabulary is None:
            return None
        return torch.uint8 if self.vocabulary <= 2**8 else torch.int16 if self.vocabulary <= 2**15 else torch.int32

    def _fields(self) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        def vectors(count: int, dim: int) -> list[tuple[torch.dtype, tuple[int, ...]]]:
            scale = [(torch.float32, (count, 1))] if self.precision == "int8" else []
            return [(getattr(torch, self.precision), (count, dim)), *scale]

        ids = self._ids()
        fields = vectors(*self.tokens) if ids is None else [(ids, self.tokens)]
        fields += vectors(1, self.image) if self.image else []
        return fields + ([(torch.float32, self.tokens[:1])] if self.saliency else [])


def _packed(x: Tensor) -> Tensor:
    """A copy whose bytes lie as another dtype wants them: `contiguous` minds neither strides of length 1 nor alignment."""
    return x.clone(memory_format=torch.contiguous_format)
