"""The conformance kit: whether a component keeps the contract of its axis.

A check takes a registered component as a name, a mapping or a Config, builds it beside a toy student and raises
AssertionError with the rule and what was seen.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from ..address import rng, uniform
from ..axes import HeadConfig, LossConfig, MaskConfig, NormConfig, StudentConfig, Teacher, TeacherConfig, ViewsConfig
from ..objective import Objective
from ..recipe import Recipe, load
from ..registry import Component, plugins
from ..sampling import Sampling
from ..types import (
    Encoded,
    Geometry,
    Mask,
    Penalized,
    Progress,
    Query,
    Rendition,
    Size,
    Tap,
    Target,
    TargetSpec,
    View,
    gather,
    sequence_rows,
)

Named = str | Mapping[str, Any] | Component.Config
"""A component as a recipe names it."""
TOY: Mapping[str, Any] = {"name": "vit", "image_size": (16, 24), "patch_size": 4, "dim": 16, "depth": 2, "num_heads": 2}
"""The student that other components are checked beside: a grid of 4 x 6 tokens, so that swapped sides show."""
INDEX = {"visible": "mask.visible_index", "hidden": "mask.hidden_index", "all": "both, visible patches first"}
Must = Callable[[bool, str], None]
"""must(what holds, what to say otherwise)."""
_FIELDS: Mapping[str, Any] = {
    "teachers": TeacherConfig,
    "norms": NormConfig,
    "students": StudentConfig,
    "heads": HeadConfig,
    "losses": LossConfig,
    "masks": MaskConfig,
    "views": ViewsConfig,
}


def check_teacher(teacher: Named, student: Named = TOY) -> None:
    """T: frozen, in eval mode, unchanged by answering; its answers are pure, fit `spec` and lie on the student's grid.

    The answers of a teacher with batch statistics may depend on the rest of the batch, and move its running ones.
    """
    config, pupil = _config("teachers", teacher), _config("students", student)
    must, geometry, built = _must("teacher", config), pupil.geometry, _bound(config, pupil)
    if config.reads_folds:
        _check_folds(must, built, pupil)
        return
    view, mask = _view(geometry, built.rendition), _mask(geometry) if config.needs_mask else None
    learning = [name for name, parameter in built.named_parameters() if parameter.requires_grad]
    must(not learning, f"it is frozen, but these parameters require gradients: {learning}")
    pure = not config.batch_statistics
    built.train()
    before = _state(built)
    target = built(view, mask)
    _check_target(must, target, built, geometry)
    follows = target.tokens.requires_grad or not config.differentiable
    must(follows, "its Config says differentiable, but no gradient flows through its target")
    changed = [name for name, tensor in _state(built).items() if not torch.equal(tensor, before[name])]
    must(not (pure and changed), f"answering must not change it, but changed {changed}")
    must(torch.equal(built(view, mask).tokens, target.tokens), "the same view must give the same target twice")
    floats = built(_as_float(view), mask).tokens
    must(torch.equal(floats, target.tokens), "uint8 and float views must give one target; read view.pixels(rendition)")
    if pure and not config.discrete:
        alone = built(_first(view), None if mask is None else Mask.from_hidden(mask.hidden[:1])).tokens
        same = _difference(alone, target.tokens[:1]) < 1e-3
        must(same, "the target of an image must not depend on the rest of its batch")
    for hook in ("on_step_start", "on_step_end", "on_epoch_end"):
        getattr(built, hook)(Progress(3, 10, 5))
        broken = [name for name, tensor in _state(built).items() if not _finite(tensor)]
        must(not broken, f"after {hook} these are not finite: {broken}")
    still = not config.cacheable or torch.equal(built(view, mask).tokens, target.tokens)
    must(still, "its hooks changed its target, which caches keep; its Config must say moves")


def _check_folds(must: Must, teacher: Teacher, pupil: Any) -> None:
    """A target made of the student's other folds: pure, on its grid, with the gradient its Config promises."""
    view, mask, student = _view(pupil.geometry), _mask(pupil.geometry), pupil.build().train()
    other = Mask(~mask.hidden, mask.visible_index, mask.hidden_index)
    encoded = [student(view, other)]
    target = teacher.from_folds(encoded)
    _check_target(must, target, teacher, pupil.geometry)
    must(
        torch.equal(teacher.from_folds(encoded).tokens, target.tokens), "the same folds must give the same target twice"
    )
    flows = target.tokens.requires_grad
    must(flows == teacher.config.differentiable, f"its Config says differentiable {not flows}, which is not so")


def _bound(config: Any, pupil: Any) -> Teacher:
    """The teacher built, bound, frozen and fitted, in the order Objective and the engine follow."""
    student: Any = pupil.build()
    teacher: Teacher = config.build(pupil.geometry)
    must, gives = _must("teacher", config), teacher.spec.discrete
    must(getattr(teacher, "config", None) == config, "its __init__ must keep its Config: self.config = config")
    must(gives == config.discrete, f"its Config says discrete {config.discrete}, its spec {gives}")
    teacher.bind(student, _config("heads", "fc").build(student, teacher.spec.dim))
    teacher.freeze()
    if teacher.needs_fit:
        teacher.fit([_view(pupil.geometry, teacher.rendition, batch=16, seed=seed) for seed in range(4)])
        must(not teacher.needs_fit, "once fitted it must say so: needs_fit stays True after fit")
    if config.reloads:
        again, state = config.build(pupil.geometry).state_dict(), teacher.state_dict()
        same = all(torch.equal(tensor, again[name]) for name, tensor in state.items())
        must(same, "its Config says reloads, but building it twice gives different weights")
    return teacher


def _check_target(must: Must, target: Target, teacher: Teacher, geometry: Geometry) -> None:
    grid, spec = (2, geometry.num_tokens), teacher.spec
    shapes: Mapping[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "tokens": (target.tokens, grid if spec.discrete else (*grid, spec.dim)),
        "image": (target.image, (2, 1, spec.dim)),
        "saliency": (target.saliency, grid),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is not None:
            seen = tuple(tensor.shape)
            must(seen == shape, f"{name} must be {shape}, on the student's grid of {geometry.grid}, but is {seen}")
            must(_finite(tensor), f"{name} must be finite")
    if spec.discrete:
        low, high = int(target.tokens.min()), int(target.tokens.max())
        must(target.tokens.dtype == torch.int64, f"ids must be int64, not {target.tokens.dtype}")
        must(low >= 0 and high < spec.dim, f"ids must lie in [0, {spec.dim}), but reach from {low} to {high}")
        return
    must(target.tokens.is_floating_point(), f"vectors must be floating point, not {target.tokens.dtype}")
    picture = teacher.picture(target.tokens)
    right = picture is None or (picture.shape[0], picture.ndim) == (2, 4)
    must(right, f"picture must be (B, C, H, W) or None, not {None if picture is None else tuple(picture.shape)}")


def check_norm(norm: Named) -> None:
    """N: (B, N, D) -> (B, N, D), float32, no parameters, pure; value and gradient finite on constant tokens too."""
    config = _config("norms", norm)
    must, built = _must("norm", config), config.build()
    owned = [name for name, _ in built.named_parameters()]
    must(not owned, f"a normalization of the target has no parameters, but this one owns {owned}")
    for kind, x in {
        "random": _noise(3, 24, 8),
        "constant": torch.ones(3, 24, 8),
        "zero": torch.zeros(3, 24, 8),
    }.items():
        given = x.clone().requires_grad_()
        out = built(given)
        must(out.shape == x.shape, f"it keeps the shape {tuple(x.shape)}, but gave {tuple(out.shape)}")
        must(out.dtype == torch.float32, f"float32 stays float32, but became {out.dtype}")
        must(_finite(out), f"{kind} tokens give values that are not finite; add eps")
        torch.autograd.backward(_weighted(out))
        must(_finite(given.grad), f"{kind} tokens give a gradient that is not finite; keep sqrt away from zero")
        must(torch.equal(given.detach(), x), "it must not write into its input")
        must(torch.equal(built(x), out), "the same tokens must give the same result twice")


def check_student(student: Named) -> None:
    """S: the shapes its Config promises; hidden pixels without influence; every parameter trained by masked images."""
    config = _config("students", student)
    must, built, geometry = _must("student", config), _stirred(config.build()).eval(), config.geometry
    must(built.config == config, "its __init__ must keep its Config: self.config = config")
    must(built.geometry == geometry, f"Config says {geometry}, but the built student {built.geometry}")
    must(built.dim == geometry.dim, f"dim {built.dim} differs from its geometry's {geometry.dim}")
    view = _view(geometry)
    whole = built(view).tokens
    must(torch.equal(built(view).tokens, whole), "in eval mode the same view must give the same tokens twice")
    must(
        torch.equal(built(_as_float(view)).tokens, whole),
        "uint8 and float views must give one result; read view.pixels()",
    )
    for mask in [None, *_masks(config)]:
        _check_encoded(must, built(view, mask), config, view, mask)
        _check_taps(must, built, view, mask)
        if mask is not None:
            _check_blind(must, built, view, mask)
            if config.can_narrow:
                _check_narrow(must, built, view, mask)
    nothing = Mask.from_hidden(torch.zeros(2, geometry.num_tokens, dtype=torch.bool), 0)
    idle = built(view, nothing).tokens if config.can_hide else whole
    other = geometry.masked is not None  # tokens of a masked image are another part's
    same = other or idle.shape != whole.shape or _difference(idle, whole) < 1e-4
    must(same, "a mask that hides nothing must change nothing; look for positions that move when patches are dropped")
    encoded = built.train()(view, _mask(geometry) if config.can_hide else None)
    torch.autograd.backward(_weighted(encoded.tokens) + _weighted(encoded.prefix))
    _check_gradients(must, built)
    _check_layers(must, built)


def _check_narrow(must: Must, student: Any, view: View, mask: Mask) -> None:
    """Asked for some positions, it says of them, and of the prefix, what it says when all are asked for."""
    last = [Tap(student.config.num_blocks - 1, point) for point in ("block", "mlp")]
    index, num_prefix = mask.hidden_index, student.config.num_prefix
    whole, narrow = student(view, mask, last), student(view, mask, last, index)
    must(narrow.index is index, "its Config says can_narrow, so Encoded.index must be the positions asked")
    pairs = {"tokens": (narrow.tokens, whole.at(index)), "prefix": (narrow.prefix, whole.prefix)}
    for tap in last:
        pairs[f"tap {tap}"] = narrow.taps[tap], gather(whole.taps[tap], sequence_rows(index, num_prefix))
    for name, (seen, wanted) in pairs.items():
        same = seen.shape == wanted.shape and _difference(seen, wanted) < 1e-4
        must(same, f"narrowed to the positions asked, {name} must stay what they are")


def _check_encoded(must: Must, encoded: Encoded, config: Any, view: View, mask: Mask | None) -> None:
    geometry, batch = config.geometry, len(view.image)
    how = "of the whole image" if mask is None else "of a masked image"
    if mask is None or config.dense:
        must(encoded.index is None, f"token j {how} sits at position j, so index must be None")
    else:
        seen, unseen = mask.visible_index, mask.hidden_index
        index = {"visible": seen, "hidden": unseen, "all": torch.cat([seen, unseen], 1)}[config.answers]
        right = encoded.index is not None and torch.equal(encoded.index, index)
        must(right, f"not dense, it answers for {config.answers} patches, so index must be {INDEX[config.answers]}")
    dim = geometry.dim if mask is None else geometry.masked_dim
    shape = batch, geometry.num_tokens if encoded.index is None else encoded.index.shape[1], dim
    must(encoded.tokens.shape == shape, f"tokens {how} must be {shape}, not {tuple(encoded.tokens.shape)}")
    must(_finite(encoded.tokens) and _finite(encoded.prefix), f"tokens {how} must be finite")
    prefix, shape = tuple(encoded.prefix.shape), (batch, config.num_prefix, dim)
    must(prefix == shape, f"num_prefix {config.num_prefix} promises a prefix of {shape}, not {prefix}")
    must(encoded.grid == geometry.grid, f"grid must be {geometry.grid}, not {encoded.grid}")
    must(encoded.box is view.box and encoded.flip is view.flip, "it must hand on box and flip of the view")


def _check_taps(must: Must, student: Any, view: View, mask: Mask | None) -> None:
    """Every block can be tapped at both points, and asking for taps changes nothing."""
    asked = [tap for block in range(student.config.num_blocks) for tap in (Tap(block), Tap(block, "mlp"))]
    plain, tapped = student(view, mask), student(view, mask, asked)
    must(torch.equal(plain.tokens, tapped.tokens), "asking for taps must not change the tokens")
    missing = [tap for tap in asked if tap not in tapped.taps]
    must(not missing, f"num_blocks promises these taps, but they are missing: {missing}")
    geometry = student.geometry
    seen = geometry.num_tokens if mask is None or student.config.dense else mask.visible_index.shape[1]
    shape = len(view.image), plain.prefix.shape[1] + seen, geometry.dim
    wrong = {tap: tuple(tapped.taps[tap].shape) for tap in asked if tapped.taps[tap].shape != shape}
    must(not wrong, f"a tap holds prefix and tokens, {shape}, but these do not: {wrong}")


def _check_blind(must: Must, student: Any, view: View, mask: Mask) -> None:
    """What an unseen patch shows has no influence at all; what a visible one shows has some."""
    seen, blind = student(view, mask), student(_disturb(view, mask.unseen, student.geometry), mask)
    leak = max(_difference(seen.tokens, blind.tokens), _difference(seen.prefix, blind.prefix))
    must(leak == 0.0, f"hidden pixels must not reach the student's output, but changed it by {leak:.2g}")
    other = student(_disturb(view, ~mask.hidden, student.geometry), mask)
    must(_difference(seen.tokens, other.tokens) > 0, "visible pixels do not reach the student's output")


def _check_layers(must: Must, student: Any) -> None:
    """layer_of answers for every parameter, or for none."""
    layers, refused = {}, []
    for name, _ in student.named_parameters():
        try:
            layers[name] = student.layer_of(name)
        except ValueError:
            refused.append(name)
    must(not (layers and refused), f"layer_of answers for some parameters, but not for {refused}")
    last = student.config.num_layers + 1
    wrong = {name: layer for name, layer in layers.items() if not 0 <= layer <= last}
    must(not wrong, f"layer_of must lie in [0, num_layers + 1] = [0, {last}], but says {wrong}")


def check_head(head: Named, student: Named = TOY, out_dim: int = 5) -> None:
    """H: (B, M, out_dim) at the queried positions, in the query's order; for the image; with the class token first, where
    the student has one."""
    config, pupil = _config("heads", head), _config("students", student)
    must, encoder = _must("head", config), _stirred(pupil.build()).eval()
    fits = pupil.answers != "visible" or not config.needs_dense
    must(fits, f"it needs tokens of hidden patches, but {pupil.name!r} drops them; pass a student that keeps them")
    beyond = [tap for tap in config.taps if not 0 <= tap.block < pupil.num_blocks]
    must(not beyond, f"it reads {beyond}, but the student has {pupil.num_blocks} blocks; pass a deeper one")
    fits = pupil.num_prefix > 0 or not config.needs_class
    must(fits, f"it needs a class token, but student {pupil.name!r} has none; pass one with it")
    built, view = _stirred(config.build(encoder, out_dim)).eval(), _view(pupil.geometry)
    if built.needs_fit:
        with torch.no_grad():
            built.fit([encoder(_view(pupil.geometry, batch=16, seed=seed), None, config.taps) for seed in range(4)])
        must(not built.needs_fit, "once fitted it must say so: needs_fit stays True after fit")
    ask: Any = partial(Query, box=view.box, flip=view.flip)
    for mask in _masks(pupil) or [_mask(pupil.geometry)]:
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
        must(seen == shape and _finite(said.penalty), f"penalty must be finite and {shape}, not {seen}")
        preds = (*preds, said.penalty.unsqueeze(-1))
    torch.autograd.backward([_weighted(pred) for pred in preds])
    _check_gradients(must, built)
    built.on_step_end(Progress(3, 10, 5))
    broken = [name for name, tensor in _state(built).items() if not _finite(tensor)]
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
    must(all(map(_finite, preds)), f"predictions {where} must be finite")


def check_loss(loss: Named, dim: int = 6, distance: bool = True) -> None:
    """L: float32 per query (B, M), or () if joint; finite gradients; entries that are not valid have no influence.

    distance False is for regularizers, whose value is not least where prediction and target agree.
    """
    config = _config("losses", loss)
    must, built, shape = _must("loss", config), config.build(TargetSpec(dim, config.discrete)), (3, 7)
    ids = (uniform(torch.arange(3), 7, 1) * dim).long()
    target = ids if config.discrete else _noise(*shape, dim, seed=1)
    pred = _noise(*shape, built.out_dim).requires_grad_()
    value = built(pred, target)
    expected, seen = () if config.joint else shape, tuple(value.shape)
    must(seen == expected, f"joint {config.joint} promises a value of shape {expected}, but forward gave {seen}")
    must(value.dtype == torch.float32, f"float32 stays float32, but became {value.dtype}")
    torch.autograd.backward(value.sum())
    must(_finite(value) and _finite(pred.grad), "value and gradient must be finite")
    must(torch.equal(built(pred, target), value), "the same prediction and target must cost the same twice")
    if config.joint:
        return
    valid = torch.arange(7).expand(3, -1) < torch.tensor([[7], [5], [3]])
    spoilt = torch.where(valid.unsqueeze(-1), pred.detach(), 1e3)
    leak = _difference(built(pred, target, valid)[valid], built(spoilt, target, valid)[valid])
    must(leak < 1e-4, f"predictions that are not valid must not change the others, but do, by {leak:.2g}")
    if distance and (config.discrete or built.out_dim == dim):
        equal = 50 * F.one_hot(ids, built.out_dim).float() if config.discrete else target
        least = not (built(equal, target) > value + 1e-6).any()
        must(least, "it must be least where the prediction says the target; a regularizer passes distance=False")


def check_mask(mask: Named, grids: Sequence[Size] = ((4, 6), (7, 7), (14, 14))) -> None:
    """A mask sampler: (K, N) bool with the promised count, pure in its generator, picklable for loader workers."""
    config = _config("masks", mask)
    must = _must("mask", config)
    built = _in_a_worker(must, config.build())
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
        source, again = (sampler.source(hidden, rng(seed, 1)) for _ in range(2))
        right = source.shape == hidden.shape and source.dtype == np.int64
        must(right, f"source must be {hidden.shape} int64, not {source.shape} {source.dtype}")
        must(np.array_equal(source, again), "source must draw from the generator it is given and from nothing else")
        own = np.broadcast_to(np.arange(hidden.shape[1]), hidden.shape)
        must(bool((source == own)[~hidden].all()), "a visible patch must show itself")
        inside = bool(((source >= -1) & (source < hidden.shape[1])).all())
        must(inside, "source must name a patch, or be -1 for the mask token")


def _check_groups(must: Must, sampler: Any, grid: Size) -> None:
    number = sampler.config.num_groups
    for seed in range(8):
        hidden = sampler.sample(grid, rng(seed))
        group, again = (sampler.group(hidden, rng(seed, 1)) for _ in range(2))
        right = group.shape == hidden.shape and group.dtype == np.int64
        must(right, f"group must be {hidden.shape} int64, not {group.shape} {group.dtype}")
        must(np.array_equal(group, again), "group must draw from the generator it is given and from nothing else")
        for row, own in zip(group, hidden, strict=True):
            sizes = np.bincount(row[own], minlength=number).tolist()
            must(len(sizes) == number and len({*sizes}) == 1, f"{number} groups must be of equal size, not {sizes}")


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


def check_views(views: Named, size: Size = (16, 24)) -> None:
    """A view policy: promised names and sizes, uint8, boxes inside the image, pure in its generator, picklable."""
    config = _config("views", views)
    must = _must("view policy", config)
    built = _in_a_worker(must, config.build())
    renditions = Rendition((8, 12), "lanczos"), Rendition((20, 36), "bilinear")
    for number, (height, width) in enumerate([(40, 50), (64, 20), (5, 90), size]):
        image = _pixels((3, height, width), number)
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


def check_recipe(recipe: Recipe | str, overrides: Sequence[str] = ()) -> None:
    """One training step of a recipe at the size it is given; overrides such as student.depth=2 make it small.

    The recipe survives YAML, every trainable parameter gets a finite gradient, a second pass gives the same losses, and
    hidden pixels stay hidden.
    """
    recipe = load(recipe if isinstance(recipe, str) else recipe.data(), overrides)
    must, copy = partial(_require, f"recipe {recipe.name!r}"), load(yaml.safe_load(recipe.yaml()))
    must(copy == recipe and copy.hash == recipe.hash, "it must come back equal from its YAML")
    objective = Objective(recipe)
    sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
    images = _pixels((4, objective.student.geometry.channels, 80, 96), 5)
    batch = sampling.collate([sampling(image, 0, index) for index, image in enumerate(images)])
    objective.fit([batch])
    objective.on_step_start(Progress(0, 10, 5))
    losses = objective.train()(batch)
    broken = {name: value for name, value in losses.items() if value.shape != () or not _finite(value)}
    must(not broken, f"a loss must be one finite number, but these are not: {broken}")
    torch.autograd.backward(losses["loss"])
    _check_gradients(must, objective)
    objective.on_step_end(Progress(0, 10, 5))
    objective.on_epoch_end(Progress(4, 10, 5))
    objective.eval()
    with torch.no_grad():
        first, second = objective(batch), objective(batch)
        moved = [name for name in first if not torch.equal(first[name], second[name])]
        must(not moved, f"in eval mode the same batch must give the same losses twice, but not {moved}")
        for view, folds in batch.masks.items():
            for mask in folds if objective.hides[view] else ():
                _check_blind(must, objective.student, batch.views[view], mask)


def _config(kind: str, value: Named) -> Any:
    """The Config of a component, checked to be registered, hashable and equal to its own JSON."""
    noun, adapter = plugins()[kind].noun, TypeAdapter(_FIELDS[kind])
    try:
        config = adapter.validate_python(value)
    except ValidationError as error:
        raise AssertionError(f"{noun} {value!r} is not accepted: {error}") from None
    must = _must(noun, config)
    must(
        config.component is plugins()[kind][config.name], "its Config belongs to another class than the registered one"
    )
    must(adapter.validate_json(adapter.dump_json(config)) == config, "its Config must come back equal from JSON")
    try:
        hash(config)
    except TypeError as error:
        raise AssertionError(
            f"{noun} {config.name!r}: its Config must be hashable, so tuples and no lists: {error}"
        ) from None
    return config


def _in_a_worker(must: Must, built: Any) -> Any:
    """What a loader worker gets of it."""
    try:
        return pickle.loads(pickle.dumps(built))
    except Exception as error:  # whatever its __reduce__ raises
        must(False, f"loader workers get it pickled, which fails: {error}")


def _must(noun: str, config: Any) -> Must:
    return partial(_require, f"{noun} {config.name!r}")


def _require(who: str, met: bool, problem: str) -> None:
    if not met:
        raise AssertionError(f"{who}: {problem}")


def _pixels(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _view(geometry: Geometry, rendition: Rendition | None = None, batch: int = 2, seed: int = 0) -> View:
    image, cuts = _pixels((batch, geometry.channels, *geometry.image), seed), {}
    if rendition is not None:
        cut = F.interpolate(image.float(), rendition.size, mode="bilinear", antialias=True)
        cuts[rendition] = cut.round().to(torch.uint8)
    return View(image, cuts, torch.tensor([[0.1, 0.2, 0.5, 0.6]]).expand(batch, -1), torch.arange(batch) % 2 == 1)


def _as_float(view: View) -> View:
    cuts = {rendition: cut.float() / 255 for rendition, cut in view.renditions.items()}
    return View(view.image.float() / 255, cuts, view.box, view.flip)


def _first(view: View) -> View:
    cuts = {rendition: cut[:1] for rendition, cut in view.renditions.items()}
    return View(view.image[:1], cuts, *(None if part is None else part[:1] for part in (view.box, view.flip)))


def _mask(geometry: Geometry, varying: bool = False) -> Mask:
    """Two images with half of their patches hidden each; or the first with a third and the second with two thirds."""
    count = geometry.num_tokens
    rank = uniform(torch.arange(2), count, 7).argsort(1).argsort(1)
    if varying:
        return Mask.from_hidden(rank < torch.tensor([[count // 3], [count - count // 3]]))
    return Mask.from_hidden(rank < count // 2, count // 2)


def _masks(student: Any) -> list[Mask]:
    """The kinds of mask a student must take; none if it cannot hide."""
    if not student.can_hide:
        return []
    kinds = [_mask(student.geometry), *([_mask(student.geometry, varying=True)] if student.dense else [])]
    return [*kinds, *([_substituting(kinds[0])] if student.can_substitute else [])]


def _substituting(mask: Mask) -> Mask:
    """The mask with a third of the hidden patches as they are, and a third showing a visible patch."""
    own = torch.arange(mask.hidden.shape[1]).expand_as(mask.hidden)
    kind = torch.where(mask.hidden, own % 3, 0)
    source = torch.where(kind == 1, mask.visible_index[:, :1], torch.where(mask.hidden & (kind == 0), -1, own))
    return replace(mask, source=source)


def _disturb(view: View, where: Tensor, geometry: Geometry) -> View:
    """The view with the patches where (B, N) is True inverted."""
    (rows, columns), (height, width) = geometry.grid, geometry.patch
    pixels = where.view(-1, 1, rows, columns).repeat_interleave(height, 2).repeat_interleave(width, 3)
    return View(torch.where(pixels, 255 - view.image, view.image), view.renditions, view.box, view.flip)


def _stirred(module: Any) -> Any:
    """The module with every trainable parameter moved, so that what starts at zero cannot hide a mistake."""
    with torch.no_grad():
        for number, parameter in enumerate(p for p in module.parameters() if p.requires_grad):
            parameter.add_(0.1 * _noise(*parameter.shape, seed=number))
    return module


def _state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, also of those a checkpoint leaves out."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def _weighted(x: Tensor) -> Tensor:
    """A scalar whose gradient differs from entry to entry, so that no layer cancels it."""
    return (x * _noise(*x.shape, seed=3)).sum()


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max()) if a.numel() else 0.0


def _finite(x: Tensor | None) -> bool:
    return x is not None and bool(x.isfinite().all())


def _check_gradients(must: Must, module: nn.Module) -> None:
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    missing = [name for name, parameter in trainable.items() if parameter.grad is None]
    must(not missing, f"these trainable parameters get no gradient: {missing}")
    broken = [name for name, parameter in trainable.items() if not _finite(parameter.grad)]
    must(not broken, f"these parameters get a gradient that is not finite: {broken}")
