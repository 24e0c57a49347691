"""Small images, views and masks that components are checked with; made of seeds, the same every time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...address import uniform
from ...types import Geometry, Mask, Rendition, View

TOY: Mapping[str, Any] = {"name": "vit", "image_size": (16, 24), "patch_size": 4, "dim": 16, "depth": 2, "num_heads": 2}
"""The student that other components are checked beside: a grid of 4 x 6 tokens, so that swapped sides show."""


def toy_pixels(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def toy_view(geometry: Geometry, rendition: Rendition | None = None, batch: int = 2, seed: int = 0) -> View:
    image, cuts = toy_pixels((batch, geometry.channels, *geometry.image), seed), {}
    if rendition is not None:
        cut = F.interpolate(image.float(), rendition.size, mode="bilinear", antialias=True)
        cuts[rendition] = cut.round().to(torch.uint8)
    return View(image, cuts, torch.tensor([[0.1, 0.2, 0.5, 0.6]]).expand(batch, -1), torch.arange(batch) % 2 == 1)


def as_float(view: View) -> View:
    cuts = {rendition: cut.float() / 255 for rendition, cut in view.renditions.items()}
    return View(view.image.float() / 255, cuts, view.box, view.flip)


def first_image(view: View) -> View:
    cuts = {rendition: cut[:1] for rendition, cut in view.renditions.items()}
    return View(view.image[:1], cuts, *(None if part is None else part[:1] for part in (view.box, view.flip)))


def toy_mask(geometry: Geometry, varying: bool = False) -> Mask:
    """Two images with half of their patches hidden each; or the first with a third and the second with two thirds."""
    count = geometry.num_tokens
    rank = uniform(torch.arange(2), count, 7).argsort(1).argsort(1)
    if varying:
        return Mask.from_hidden(rank < torch.tensor([[count // 3], [count - count // 3]]))
    return Mask.from_hidden(rank < count // 2, count // 2)


def toy_masks(student: Any) -> list[Mask]:
    """The kinds of mask a student must take; none if it cannot hide."""
    if not student.can_hide:
        return []
    kinds = [toy_mask(student.geometry), *([toy_mask(student.geometry, varying=True)] if student.dense else [])]
    return [*kinds, *([substituting(kinds[0])] if student.can_substitute else [])]


def substituting(mask: Mask) -> Mask:
    """The mask with a third of the hidden patches as they are, and a third showing a visible patch."""
    own = torch.arange(mask.hidden.shape[1]).expand_as(mask.hidden)
    kind = torch.where(mask.hidden, own % 3, 0)
    source = torch.where(kind == 1, mask.visible_index[:, :1], torch.where(mask.hidden & (kind == 0), -1, own))
    return replace(mask, source=source)


def disturbed(view: View, where: Tensor, geometry: Geometry) -> View:
    """The view with the patches where (B, N) is True inverted."""
    (rows, columns), (height, width) = geometry.grid, geometry.patch
    pixels = where.view(-1, 1, rows, columns).repeat_interleave(height, 2).repeat_interleave(width, 3)
    return View(torch.where(pixels, 255 - view.image, view.image), view.renditions, view.box, view.flip)


def stirred(module: Any) -> Any:
    """The module with every trainable parameter moved, so that what starts at zero cannot hide a mistake."""
    with torch.no_grad():
        for number, parameter in enumerate(p for p in module.parameters() if p.requires_grad):
            parameter.add_(0.1 * noise(*parameter.shape, seed=number))
    return module


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, also of those a checkpoint leaves out."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def weighted(x: Tensor) -> Tensor:
    """A scalar whose gradient differs from entry to entry, so that no layer cancels it."""
    return (x * noise(*x.shape, seed=3)).sum()
