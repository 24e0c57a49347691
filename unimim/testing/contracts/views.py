"""What a view policy must keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...address import rng
from ...types import Rendition, Size, View
from .rules import Must, Named, config_of, in_a_worker, requirements
from .toys import toy_pixels


def check_views(views: Named, size: Size = (16, 24)) -> None:
    """A view policy: promised names and sizes, uint8, boxes inside the image, pure in its generator, picklable."""
    config = config_of("views", views)
    must = requirements("view policy", config)
    built = in_a_worker(must, config.build())
    renditions = Rendition((8, 12), "lanczos"), Rendition((20, 36), "bilinear")
    for number, (height, width) in enumerate([(40, 50), (64, 20), (5, 90), size]):
        image = toy_pixels((3, height, width), number)
        given = image.clone()
        made, again = (built.sample(image, rng(number), size, renditions) for _ in range(2))
        must(torch.equal(image, given), "it must not write into the image it is given")
        must(sorted(made) == sorted(config.names), f"its Config promises views {config.names}, but it made {(*made,)}")
        for name, view in made.items():
            own = config.size_of(name, size)
            _check_view(must, name, view, own, renditions if own == size else ())
            same = all(torch.equal(a, b) for a, b in zip(_cuts(view), _cuts(again[name]), strict=True))
            must(same, f"view {name!r} must be drawn from the generator it is given and from nothing else")


def _check_view(must: Must, name: str, view: View, size: Size, renditions: Sequence[Rendition]) -> None:
    lost = [rendition for rendition in renditions if rendition not in view.renditions]
    must(not lost, f"view {name!r} must hold every rendition asked for, but lacks {lost}")
    for wanted, cut in [(size, view.image), *((cut.size, view.renditions[cut]) for cut in renditions)]:
        right = cut.shape == (1, 3, *wanted) and cut.dtype == torch.uint8
        must(right, f"view {name!r}: a cut must be {(1, 3, *wanted)} uint8, not {tuple(cut.shape)} {cut.dtype}")
    right = view.box is not None and view.box.shape == (1, 4) and view.flip is not None and view.flip.shape == (1,)
    must(right, f"view {name!r} must tell its box (1, 4) and flip (1,)")
    top, left, height, width = [0.0] * 4 if view.box is None else view.box[0].tolist()
    inside = min(top, left) >= 0 and min(height, width) > 0 and max(top + height, left + width) <= 1 + 1e-6
    must(inside, f"view {name!r}: box is top, left, height, width in fractions of the image, not {view.box}")


def _cuts(view: View) -> list[Tensor]:
    return [view.image, *view.renditions.values(), *(part for part in (view.box, view.flip) if part is not None)]
