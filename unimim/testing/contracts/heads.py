"""H: what a head must keep."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...types import Encoded, Penalized, Progress, Query
from .rules import Must, Named, check_trained, config_of, finite, requirements
from .toys import TOY, state_of, stirred, toy_mask, toy_masks, toy_view, weighted


def check_head(head: Named, student: Named = TOY, out_dim: int = 5) -> None:
    """H: (B, M, out_dim) at the queried positions, in the query's order; for the image; with the class token first, where
    the student has one."""
    config, pupil = config_of("heads", head), config_of("students", student)
    must, encoder = requirements("head", config), stirred(pupil.build()).eval()
    fits = pupil.answers != "visible" or not config.needs_dense
    must(fits, f"it needs tokens of hidden patches, but {pupil.name!r} drops them; pass a student that keeps them")
    beyond = [tap for tap in config.taps if not 0 <= tap.block < pupil.num_blocks]
    must(not beyond, f"it reads {beyond}, but the student has {pupil.num_blocks} blocks; pass a deeper one")
    fits = pupil.num_prefix > 0 or not config.needs_class
    must(fits, f"it needs a class token, but student {pupil.name!r} has none; pass one with it")
    built, view = stirred(config.build(encoder, out_dim)).eval(), toy_view(pupil.geometry)
    if built.needs_fit:
        with torch.no_grad():
            built.fit([encoder(toy_view(pupil.geometry, batch=16, seed=seed), None, config.taps) for seed in range(4)])
        must(not built.needs_fit, "once fitted it must say so: needs_fit stays True after fit")
    ask: Any = partial(Query, box=view.box, flip=view.flip)
    for mask in toy_masks(pupil) or [toy_mask(pupil.geometry)]:
        shown, index = mask if pupil.can_hide else None, mask.hidden_index
        encoded = encoder(view, shown, config.taps)
        batch, count = index.shape
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        preds = _predict(built, encoded, ask(index, mask.hidden_valid))
        _check_predictions(must, preds, (batch, count, out_dim), "at hidden positions")
        if config.reads_asked and pupil.can_narrow:
            narrowed = _predict(built, encoder(view, shown, config.taps, index), ask(index, mask.hidden_valid))
            same = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(narrowed, preds, strict=True))
            must(
                same, "its Config says reads_asked, but it predicts otherwise where the student answers for these alone"
            )
        image = _predict(built, encoded, ask(None))
        _check_predictions(must, image, (batch, 1, out_dim), "of the image (query.index None)")
        copied = _all(built.momentum_copy().target(encoded, ask(None)))
        _check_predictions(must, copied, (batch, 1, out_dim), "of its momentum copy (target)")
        moved = _predict(built, encoded, ask(index[:, order]))
        same = all(torch.allclose(a[:, order], b, atol=1e-5) for a, b in zip(preds, moved, strict=True))
        must(same, "another order of the queried positions must only reorder its predictions")
        if pupil.num_prefix:
            classed = _predict(built, encoded, ask(index, include_class=True))
            _check_predictions(must, classed, (batch, count + 1, out_dim), "with include_class")
            after = all(torch.allclose(a[:, 1:], b, atol=1e-5) for a, b in zip(classed, preds, strict=True))
            must(after, "with include_class the class token comes first and the patches' predictions stay as they are")
    built.train().on_step_start(Progress(3, 10, 5))
    said = built(encoder(view, shown, config.taps), ask(index))
    preds = _all(said)
    if isinstance(said, Penalized):
        shape, seen = (batch, count), tuple(said.penalty.shape)
        must(seen == shape and finite(said.penalty), f"penalty must be finite and {shape}, not {seen}")
        preds = (*preds, said.penalty.unsqueeze(-1))
    torch.autograd.backward([weighted(pred) for pred in preds])
    check_trained(must, built)
    built.on_step_end(Progress(3, 10, 5))
    broken = [name for name, tensor in state_of(built).items() if not finite(tensor)]
    must(not broken, f"after a step these are not finite: {broken}")
    odd = [name for name, value in built.health.items() if value.shape != () or value.requires_grad]
    must(not odd, f"health holds detached scalars, but these are not: {odd}")


def _predict(head: Any, encoded: Encoded, query: Query) -> tuple[Tensor, ...]:
    return _all(head(encoded, query))


def _all(said: Any) -> tuple[Tensor, ...]:
    preds = said.preds if isinstance(said, Penalized) else said
    return preds if isinstance(preds, tuple) else (preds,)


def _check_predictions(must: Must, preds: tuple[Tensor, ...], shape: tuple[int, ...], where: str) -> None:
    seen = [tuple(pred.shape) for pred in preds]
    must(all(part == shape for part in seen), f"predictions {where} must be {shape}, but are {seen}")
    must(all(map(finite, preds)), f"predictions {where} must be finite")
