"""What a whole recipe must keep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import yaml

from ...objective import Objective
from ...recipe import Recipe, load
from ...sampling import Sampling
from ...types import Progress
from .rules import check_trained, finite, require
from .students import check_blind
from .toys import toy_pixels


def check_recipe(recipe: Recipe | str, overrides: Sequence[str] = ()) -> None:
    """One training step of a recipe at the size it is given; overrides such as student.depth=2 make it small.

    The recipe survives YAML, every trainable parameter gets a finite gradient, a second pass gives the same losses, and
    hidden pixels stay hidden.
    """
    recipe = load(recipe if isinstance(recipe, str) else recipe.data(), overrides)
    must, copy = partial(require, f"recipe {recipe.name!r}"), load(yaml.safe_load(recipe.yaml()))
    must(copy == recipe and copy.hash == recipe.hash, "it must come back equal from its YAML")
    objective = Objective(recipe)
    sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
    images = toy_pixels((4, objective.student.geometry.channels, 80, 96), 5)
    batch = sampling.collate([sampling(image, 0, index) for index, image in enumerate(images)])
    objective.fit([batch])
    objective.on_step_start(Progress(0, 10, 5))
    losses = objective.train()(batch)
    broken = {name: value for name, value in losses.items() if value.shape != () or not finite(value)}
    must(not broken, f"a loss must be one finite number, but these are not: {broken}")
    torch.autograd.backward(losses["loss"])
    check_trained(must, objective)
    objective.on_step_end(Progress(0, 10, 5))
    objective.on_epoch_end(Progress(4, 10, 5))
    objective.eval()
    with torch.no_grad():
        first, second = objective(batch), objective(batch)
        moved = [name for name in first if not torch.equal(first[name], second[name])]
        must(not moved, f"in eval mode the same batch must give the same losses twice, but not {moved}")
        for view, folds in batch.masks.items():
            for mask in folds if objective.hides[view] else ():
                check_blind(must, objective.student, batch.views[view], mask)
