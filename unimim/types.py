"""What crosses the seams between the axes.

Legend, used in every name and docstring of unimim: B images in a batch, N tokens of the patch grid (raster order),
L tokens the student kept, M queried positions, D width, P prefix (class or register) tokens, K mask folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

Size = tuple[int, int]
"""(height, width), in pixels or in tokens."""


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x (B, N, ...) at index (B, M) int64 -> (B, M, ...)."""
    batch, num_tokens = x.shape[:2]
    rows = torch.arange(batch, device=x.device).unsqueeze(1) * num_tokens
    flat = x.reshape(batch * num_tokens, *x.shape[2:]).index_select(0, (index + rows).flatten())
    return flat.view(*index.shape, *x.shape[2:])


def sequence_rows(index: Tensor, num_prefix: int) -> Tensor:
    """Places (B, P + M) of the P prefix tokens and of the grid positions index (B, M) in a sequence of P + N tokens."""
    prefix = torch.arange(num_prefix, device=index.device).expand(len(index), -1)
    return torch.cat([prefix, index + num_prefix], 1)


def scatter(x: Tensor, index: Tensor, base: Tensor) -> Tensor:
    """A copy of base (B, N, D) whose rows at index (B, M) int64 are x (B, M, D)."""
    return base.scatter(1, index.unsqueeze(-1).expand(-1, -1, base.shape[-1]), x.to(base.dtype))


@dataclass(frozen=True)
class Rendition:
    """One cut of a view's crop box: what a teacher asks the loader for."""

    size: Size
    """Pixels (H, W)."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"


@dataclass(frozen=True)
class Geometry:
    """What a teacher must know of the student: image (H, W) in pixels, grid (h, w) in tokens, its width D, channels.

    masked: width of its tokens of a masked image, where that is not D.
    """

    image: Size
    grid: Size
    dim: int
    channels: int = 3
    masked: int | None = None

    @property
    def masked_dim(self) -> int:
        return self.dim if self.masked is None else self.masked

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def patch(self) -> Size:
        """Pixels (H, W) under one token."""
        return self.image[0] // self.grid[0], self.image[1] // self.grid[1]


def _move(value: Any, function: Any) -> Any:
    """`function` on every tensor inside dataclasses, mappings and tuples; everything else unchanged."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, _Tensors):
        return replace(value, **{f.name: _move(getattr(value, f.name), function) for f in fields(value)})
    if isinstance(value, Mapping):
        return {key: _move(item, function) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_move(item, function) for item in value)
    return value


@dataclass(frozen=True)
class _Tensors:
    def to(self, device: torch.device | str) -> Self:
        """Copy to a device without waiting for it."""
        moved: Self = _move(self, lambda x: x.to(device, non_blocking=True))
        return moved

    def pin_memory(self) -> Self:
        pinned: Self = _move(self, lambda x: x.pin_memory())
        return pinned


@dataclass(frozen=True)
class View(_Tensors):
    """One crop of every image.

    image (B, C, H, W): RGB, uint8 up to the device, then float in [0, 1], never clamped. Whoever consumes it applies its
    own mean/std and pixel map; a teacher never inherits the student's.
    renditions: the same crop box cut at the other sizes and interpolations that teachers declared.
    box (B, 4): top, left, height, width of the crop as fractions of the source image.  flip (B,) bool: mirrored.
    """

    image: Tensor
    renditions: Mapping[Rendition, Tensor] = field(default_factory=dict)
    box: Tensor | None = None
    flip: Tensor | None = None

    def pixels(self, rendition: Rendition | None = None) -> Tensor:
        """Float pixels (B, C, H, W) in [0, 1] of `rendition`; None is the student's own image."""
        image = self.image if rendition is None else self.renditions.get(rendition)
        if image is None:
            height, width = self.image.shape[-2:]
            if rendition == Rendition((height, width)):
                image = self.image
            else:
                raise ValueError(f"the view holds no {rendition}; it holds {[*self.renditions]} and its own image")
        return image.float() / 255 if image.dtype == torch.uint8 else image


@dataclass(frozen=True)
class Mask(_Tensors):
    """Which patches are hidden from the student; prefix tokens are never counted.

    hidden (B, N) bool.  hidden_index (B, M), visible_index (B, L) int64, ascending. Where the count varies between
    images the indices are padded to the batch maximum and hidden_valid / visible_valid (bool, same shape) tell the real
    ones; None means every entry is real, and then every shape is static.
    source (B, N) int64: the patch whose embedding stands at each position, -1 for the mask token; None means that hidden
    patches show the mask token and the others themselves.
    groups: hidden_index may consist of that many runs of equal length, each ascending: parts of what is hidden that a
    teacher or loss takes one by one.  weight (B, N): factor of each position's loss; None is 1 everywhere.
    """

    hidden: Tensor
    hidden_index: Tensor
    visible_index: Tensor
    hidden_valid: Tensor | None = None
    visible_valid: Tensor | None = None
    source: Tensor | None = None
    groups: int = 1
    weight: Tensor | None = None

    @property
    def unseen(self) -> Tensor:
        """(B, N) bool: patches of which the student sees nothing, at their own place or at another."""
        if self.source is None:
            return self.hidden
        num_tokens = self.hidden.shape[1]
        shown = torch.zeros(len(self.hidden), num_tokens + 1, dtype=torch.bool, device=self.hidden.device)
        return ~shown.scatter(1, self.source.remainder(num_tokens + 1), True)[:, :num_tokens]

    @classmethod
    def from_hidden(cls, hidden: Tensor, num_hidden: int | None = None) -> Mask:
        """Index form of hidden (B, N) bool. `num_hidden` promises that count in every row and avoids reading it back."""
        order = hidden.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        if num_hidden is not None:
            return cls(hidden, order[:, :num_hidden], order[:, num_hidden:])
        counts = hidden.sum(1)
        fewest, most = int(counts.min()), int(counts.max())
        if fewest == most:
            return cls(hidden, order[:, :most], order[:, most:])
        num_tokens = hidden.shape[1]
        column = torch.arange(num_tokens, device=hidden.device)
        # A padded entry repeats a real position of the other kind; `valid` keeps it out of every mean.
        hidden_valid = (column < counts[:, None])[:, :most]
        visible_valid = (column >= counts[:, None])[:, fewest:]
        return cls(hidden, order[:, :most], order[:, fewest:], hidden_valid, visible_valid)

    def grouped(self, group: Tensor, groups: int) -> Mask:
        """The same mask, its hidden_index in runs by group (B, N) int64, which counts as many patches in each."""
        mine = group.gather(1, self.hidden_index)
        return replace(self, hidden_index=self.hidden_index.gather(1, mine.argsort(dim=1, stable=True)), groups=groups)


@dataclass(frozen=True)
class Batch(_Tensors):
    """One micro-batch: named views, and for every view the student sees its mask folds (K masks).

    index (B,) int64: the address of each image in the data set. An empty tuple of folds means that the mask is drawn on
    the device from a teacher's saliency.  crop: which of its replayed crops every image is in.  targets: what teachers say
    of it, where that is known already, by "<teacher>/<view>".
    """

    views: Mapping[str, View]
    masks: Mapping[str, tuple[Mask, ...]]
    index: Tensor
    crop: int = 0
    targets: Mapping[str, Target] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)


class Tap(NamedTuple):
    """A place inside the student: the residual stream after block `block` (0-based), or that block's MLP branch
    (after LayerScale, before it is added)."""

    block: int
    point: Literal["block", "mlp"] = "block"


@dataclass(frozen=True)
class Encoded:
    """What a student returns.

    tokens (B, L, D).  index (B, L) int64: their grid positions; None for a dense student, whose token j sits at j.
    prefix (B, P, D).  taps: {Tap: (B, P + L, D)}, before the final norm; L are the patches that entered the blocks, also
    where the student answers for others.  box, flip: geometry of the view it saw.
    normed: the final norm was applied to tokens and prefix.
    """

    tokens: Tensor
    prefix: Tensor
    grid: Size
    index: Tensor | None = None
    taps: Mapping[Tap, Tensor] = field(default_factory=dict)
    box: Tensor | None = None
    flip: Tensor | None = None
    normed: bool = True

    def at(self, index: Tensor) -> Tensor:
        """Tokens (B, M, D) at grid positions index (B, M); for a sparse student they must be among those it kept."""
        if self.index is None:
            return gather(self.tokens, index)
        if self.index is index:
            return self.tokens
        num_tokens = self.grid[0] * self.grid[1]
        rows = torch.arange(self.index.shape[1], device=index.device).expand_as(self.index)
        row_of_position = torch.zeros(len(index), num_tokens, dtype=torch.int64, device=index.device)
        return gather(self.tokens, row_of_position.scatter(1, self.index, rows).gather(1, index))

    def asked(self, query: Query) -> Tensor:
        """The tokens (B, M, D) that a query is about: those at its positions, after the class token if it includes that;
        the class token alone (B, 1, D) for the image."""
        if query.index is None:
            return self.prefix[:, :1]
        tokens = self.at(query.index)
        return torch.cat([self.prefix[:, :1], tokens], 1) if query.include_class else tokens


@dataclass(frozen=True)
class Query:
    """Where predictions are wanted: grid positions index (B, M) with their validity, or the image as a whole (None).

    include_class: one more prediction, first, for the class token.  box (B, 4), flip (B,): geometry of the target's view.
    """

    index: Tensor | None
    valid: Tensor | None = None
    include_class: bool = False
    box: Tensor | None = None
    flip: Tensor | None = None


@dataclass(frozen=True)
class Penalized:
    """Predictions and what they cost beside the loss: a quantizer's commitment, a divergence from a prior.

    preds: (B, M, out_dim), or several.  penalty (B, M): added to each query's loss, once.
    """

    preds: Tensor | tuple[Tensor, ...]
    penalty: Tensor


@dataclass(frozen=True)
class TargetSpec:
    """What a teacher returns: vectors of `dim` numbers, or ids in [0, dim) if `discrete`."""

    dim: int
    discrete: bool = False


@dataclass(frozen=True)
class Target(_Tensors):
    """What a teacher says of every image.

    tokens (B, N, dim) float, or (B, N) int64 ids.  image (B, 1, dim): the image as a whole, from teachers that have it.
    saliency (B, N): how much the teacher attends to each patch, for samplers that read it.
    """

    tokens: Tensor
    image: Tensor | None = None
    saliency: Tensor | None = None


@dataclass(frozen=True)
class Progress:
    """Where training stands: optimizer steps done and to do, and steps in an epoch."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def fraction(self) -> float:
        return self.step / self.total_steps

    @property
    def epoch_fraction(self) -> float:
        """The fraction at the beginning of the epoch."""
        return self.epoch * self.steps_per_epoch / self.total_steps
