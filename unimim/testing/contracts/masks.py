"""What a mask sampler must keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ...address import rng, uniform
from ...types import Size
from .rules import Must, Named, config_of, in_a_worker, requirements


def check_mask(mask: Named, grids: Sequence[Size] = ((4, 6), (7, 7), (14, 14))) -> None:
    """A mask sampler: (K, N) bool with the promised count, pure in its generator, picklable for loader workers."""
    config = config_of("masks", mask)
    must = requirements("mask", config)
    built = in_a_worker(must, config.build())
    for grid in grids:
        count, shape = config.num_hidden(grid), (config.num_folds, grid[0] * grid[1])
        for seed in range(8):
            hidden, again = (built.sample(grid, rng(seed)) for _ in range(2))
            right = isinstance(hidden, np.ndarray) and hidden.dtype == bool and hidden.shape == shape
            kind = f"{getattr(hidden, 'shape', '')} {getattr(hidden, 'dtype', type(hidden))}"
            must(right, f"it must draw a {shape} bool array on a {grid} grid, not {kind}")
            must(np.array_equal(hidden, again), "it must draw from the generator it is given and from nothing else")
            seen = hidden.sum(1).tolist()
            right = count is None or seen == [count] * len(seen)
            must(right, f"num_hidden({grid}) promises {count} hidden patches, but it drew {seen}")
            must(count == 0 or min(seen) > 0, f"it hid nothing on a {grid} grid; if that is meant, num_hidden says 0")
            must(max(seen) < shape[1], f"it hid every patch of a {grid} grid, which leaves the student nothing")
        if config.substitutes:
            _check_source(must, built, grid)
        if config.num_groups > 1:
            _check_groups(must, built, grid)
        if config.weighs:
            _check_weight(must, built, grid)
        if config.reads_saliency:
            _check_saliency(must, built, count, shape)


def _check_source(must: Must, sampler: Any, grid: Size) -> None:
    for seed in range(8):
        hidden = sampler.sample(grid, rng(seed))
        source = _drawn(must, "source", sampler.source, hidden, seed)
        own = np.broadcast_to(np.arange(hidden.shape[1]), hidden.shape)
        must(bool((source == own)[~hidden].all()), "a visible patch must show itself")
        inside = bool(((source >= -1) & (source < hidden.shape[1])).all())
        must(inside, "source must name a patch, or be -1 for the mask token")


def _check_groups(must: Must, sampler: Any, grid: Size) -> None:
    number = sampler.config.num_groups
    for seed in range(8):
        hidden = sampler.sample(grid, rng(seed))
        group = _drawn(must, "group", sampler.group, hidden, seed)
        for row, own in zip(group, hidden, strict=True):
            sizes = np.bincount(row[own], minlength=number).tolist()
            must(len(sizes) == number and len({*sizes}) == 1, f"{number} groups must be of equal size, not {sizes}")


def _drawn(must: Must, name: str, draw: Callable[..., Any], hidden: Any, seed: int) -> Any:
    """What `draw` makes for each patch of `hidden`: an int64 array of its shape, pure in its generator."""
    drawn, again = (draw(hidden, rng(seed, 1)) for _ in range(2))
    right = drawn.shape == hidden.shape and drawn.dtype == np.int64
    must(right, f"{name} must be {hidden.shape} int64, not {drawn.shape} {drawn.dtype}")
    must(np.array_equal(drawn, again), f"{name} must draw from the generator it is given and from nothing else")
    return drawn


def _check_weight(must: Must, sampler: Any, grid: Size) -> None:
    hidden = sampler.sample(grid, rng(0))
    weight = sampler.weight(hidden, grid)
    right = weight.shape == hidden.shape and weight.dtype == np.float32
    must(right, f"weight must be {hidden.shape} float32, not {weight.shape} {weight.dtype}")
    must(bool(np.isfinite(weight).all() and (weight >= 0).all()), "weight must be finite and not negative")


def _check_saliency(must: Must, sampler: Any, count: int | None, shape: tuple[int, int]) -> None:
    must(count is not None, "it reads saliency, so num_hidden must be exact")
    saliency, noise = uniform(torch.arange(3), shape[1], 1), uniform(torch.arange(3), shape[1], 2)
    folds, again = sampler.from_saliency(saliency, noise), sampler.from_saliency(saliency, noise)
    must(len(folds) == shape[0], f"num_folds promises {shape[0]} masks, but from_saliency gave {len(folds)}")
    for fold, twin in zip(folds, again, strict=True):
        seen = fold.hidden.sum(1).tolist()
        must(seen == [count] * len(seen), f"num_hidden promises {count}, but from_saliency hid {seen}")
        must(torch.equal(fold.hidden, twin.hidden), "from_saliency must depend on saliency and noise alone")
