"""T: what a teacher must keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...axes import Teacher
from ...types import Geometry, Mask, Progress, Target
from .rules import Must, Named, config_of, difference, finite, requirements
from .toys import TOY, as_float, first_image, state_of, toy_mask, toy_view


def check_teacher(teacher: Named, student: Named = TOY) -> None:
    """T: frozen, in eval mode, unchanged by answering; its answers are pure, fit `spec` and lie on the student's grid.

    The answers of a teacher with batch statistics may depend on the rest of the batch, and move its running ones.
    """
    config, pupil = config_of("teachers", teacher), config_of("students", student)
    must, geometry, built = requirements("teacher", config), pupil.geometry, _bound(config, pupil)
    if config.reads_folds:
        _check_folds(must, built, pupil)
        return
    view, mask = toy_view(geometry, built.rendition), toy_mask(geometry) if config.needs_mask else None
    learning = [name for name, parameter in built.named_parameters() if parameter.requires_grad]
    must(not learning, f"it is frozen, but these parameters require gradients: {learning}")
    pure = not config.batch_statistics
    built.train()
    before = state_of(built)
    target = built(view, mask)
    _check_target(must, target, built, geometry)
    follows = target.tokens.requires_grad or not config.differentiable
    must(follows, "its Config says differentiable, but no gradient flows through its target")
    changed = [name for name, tensor in state_of(built).items() if not torch.equal(tensor, before[name])]
    must(not (pure and changed), f"answering must not change it, but changed {changed}")
    must(torch.equal(built(view, mask).tokens, target.tokens), "the same view must give the same target twice")
    floats = built(as_float(view), mask).tokens
    must(torch.equal(floats, target.tokens), "uint8 and float views must give one target; read view.pixels(rendition)")
    if pure and not config.discrete:
        alone = built(first_image(view), None if mask is None else Mask.from_hidden(mask.hidden[:1])).tokens
        same = difference(alone, target.tokens[:1]) < 1e-3
        must(same, "the target of an image must not depend on the rest of its batch")
    for hook in ("on_step_start", "on_step_end", "on_epoch_end"):
        getattr(built, hook)(Progress(3, 10, 5))
        broken = [name for name, tensor in state_of(built).items() if not finite(tensor)]
        must(not broken, f"after {hook} these are not finite: {broken}")
    still = not config.cacheable or torch.equal(built(view, mask).tokens, target.tokens)
    must(still, "its hooks changed its target, which caches keep; its Config must say moves")


def _check_folds(must: Must, teacher: Teacher, pupil: Any) -> None:
    """A target made of the student's other folds: pure, on its grid, with the gradient its Config promises."""
    view, mask, student = toy_view(pupil.geometry), toy_mask(pupil.geometry), pupil.build().train()
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
    must, gives = requirements("teacher", config), teacher.spec.discrete
    must(getattr(teacher, "config", None) == config, "its __init__ must keep its Config: self.config = config")
    must(gives == config.discrete, f"its Config says discrete {config.discrete}, its spec {gives}")
    teacher.bind(student, config_of("heads", "fc").build(student, teacher.spec.dim))
    teacher.freeze()
    if teacher.needs_fit:
        teacher.fit([toy_view(pupil.geometry, teacher.rendition, batch=16, seed=seed) for seed in range(4)])
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
            must(finite(tensor), f"{name} must be finite")
    if spec.discrete:
        low, high = int(target.tokens.min()), int(target.tokens.max())
        must(target.tokens.dtype == torch.int64, f"ids must be int64, not {target.tokens.dtype}")
        must(low >= 0 and high < spec.dim, f"ids must lie in [0, {spec.dim}), but reach from {low} to {high}")
        return
    must(target.tokens.is_floating_point(), f"vectors must be floating point, not {target.tokens.dtype}")
    picture = teacher.picture(target.tokens)
    right = picture is None or (picture.shape[0], picture.ndim) == (2, 4)
    must(right, f"picture must be (B, C, H, W) or None, not {None if picture is None else tuple(picture.shape)}")
