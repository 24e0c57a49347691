"""Pictures of what a recipe hides, is asked for, and answers, on the same images for every recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..address import rng
from ..engine.data.sources import ImageSource
from ..objective import Objective, Prediction
from ..registry import plugins
from ..sampling import Sampling
from ..types import Batch, Size, scatter
from ..views import Center
from .attention import attention

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
SIDE = 96
"""Pixels of a picture's shorter side in the gallery."""
HEAT = ((12, 14, 40), (74, 26, 109), (165, 44, 96), (232, 105, 60), (250, 190, 75), (252, 253, 200))
"""Colours of attention, evenly spaced and ever lighter, so that they can be read in grey too."""


@dataclass(frozen=True)
class Row:
    """One picture (H, W, 3) uint8 for each image; captions only where they say more than which image it is."""

    title: str
    images: list[Pixels]
    note: str = ""
    captions: tuple[str, ...] = ()


class Scene:
    """What the rows are made of: a batch of images, and what the objective makes of it, computed when first asked for.

    The objective is used in eval mode; put it back with `train` afterwards.
    """

    def __init__(self, objective: Objective, source: ImageSource, indices: list[int]) -> None:
        self.objective, self.batch = objective.eval(), example(objective, source, indices)
        self.grid = objective.student.geometry.grid
        self.view = next(iter(self.batch.masks))
        self.image = self.batch.views[self.view].pixels()
        """(B, 3, H, W) in [0, 1]."""

    @cached_property
    def predictions(self) -> dict[str, list[Prediction]]:
        return self.objective.predictions(self.batch)

    def terms(self) -> Iterator[tuple[str, str, Prediction]]:
        """(name, label, prediction on the first mask) of every term that asks about patches."""
        for name, found in self.predictions.items():
            if found[0].query.index is not None:
                yield name, f" ({name})" if len(self.predictions) > 1 else "", found[0]

    def raw_target(self, name: str) -> Tensor:
        """The teacher's tokens (B, N, dim), or ids (B, N), before normalization; after it if they are made of the folds."""
        branch = self.objective.terms[name]
        if branch.term.teacher.reads_folds:
            return self.predictions[name][0].dense
        mask = self.batch.masks["main"][0] if "main" in self.batch.masks else None
        tokens: Tensor = branch.teacher[0](self.batch.views[branch.term.view], mask).tokens
        return tokens


@torch.no_grad()
def gallery(
    objective: Objective, source: ImageSource, indices: list[int], what: Sequence[str] = (), every_mask: bool = False
) -> list[Row]:
    """The input and the rows named in `what` (keys of `ROWS`; (): all), for the same images whatever the recipe.

    every_mask: beside the recipe's own mask, the other strategies at its ratio.
    """
    training = objective.training
    scene = Scene(objective, source, indices)
    rows = [Row("input", _pictures(scene.image))]
    for name in what or ROWS:
        rows += ROWS[name](scene)
        if name == "masks" and every_mask:
            rows += strategies(scene)
    objective.train(training)
    return rows


def masked_inputs(scene: Scene) -> list[Row]:
    """What the student sees of its first view, a row for each fold."""
    folds = scene.batch.masks[scene.view]
    if any(mask.reads_saliency for mask in scene.objective.recipe.masks.values()):
        folds = scene.objective._draw_masks(scene.batch, {}).masks[scene.view]
    numbers = [f", fold {number}" if len(folds) > 1 else "" for number in range(1, len(folds) + 1)]
    return [_masked(f"masked input{n}", scene, fold.unseen) for n, fold in zip(numbers, folds, strict=True)]


def strategies(scene: Scene) -> list[Row]:
    """The other mask strategies at the ratio of the recipe's, on the student's grid; those that cannot be so are left out."""
    own = next(iter(scene.objective.recipe.masks.values()))
    ratio = float(scene.batch.masks[scene.view][0].hidden.float().mean()) or 0.5
    rows = []
    for name in plugins()["masks"]:
        if name in ("none", own.name):
            continue
        with suppress(ValueError):
            config = plugins()["masks"][name].Config(ratio=round(ratio, 4))
            config.num_hidden(scene.grid)
            if not config.reads_saliency:
                sampler, seed = config.build(), scene.objective.recipe.seed
                drawn = [sampler.sample(scene.grid, rng(seed, index))[0] for index in scene.batch.index.tolist()]
                note = "another strategy, at the ratio of the recipe's"
                rows.append(_masked(f"{name} mask", scene, torch.from_numpy(np.stack(drawn)), note))
    return rows


def targets(scene: Scene) -> list[Row]:
    """What each term asks for: a picture where the teacher lives in pixels, colours otherwise."""
    rows = []
    for name, label, found in scene.terms():
        branch, raw = scene.objective.terms[name], scene.raw_target(name)
        picture = None if branch.term.teacher.discrete else branch.teacher[0].picture(raw)
        if branch.term.teacher.discrete:
            rows.append(Row(f"target ids{label}", _id_colours(raw, scene.grid)))
        elif picture is not None:
            rows.append(Row(f"target{label}", _pictures(picture)))
        else:
            note = "first three principal components of the targets"
            rows.append(Row(f"target{label}", _colours(found.dense, scene.grid), note))
    return rows


def predictions(scene: Scene) -> list[Row]:
    """What the student answers at the queried patches; the others show the target.

    A normalized pixel target is shown twice: as the student gives it, and on the scale of the target, which only the
    target's own mean and variance can give.
    """
    rows = []
    for name, label, found in scene.terms():
        branch, raw, pred = scene.objective.terms[name], scene.raw_target(name), found.preds[0].float()
        index = found.query.index
        assert index is not None
        if branch.term.teacher.discrete:
            ids = scatter(pred.argmax(-1, keepdim=True), index, raw.unsqueeze(-1)).squeeze(-1)
            rows.append(Row(f"predicted ids{label}", _id_colours(ids, scene.grid)))
            continue
        picture = branch.teacher[0].picture
        answer = scatter(pred, index, found.dense)
        shown = picture(answer)
        if shown is None:
            colours = _colours(answer, scene.grid, basis=found.dense)
            rows.append(Row(f"prediction{label}", colours, "in the colours of the target"))
        elif branch.term.norm.name == "identity":
            rows.append(Row(f"prediction{label}", _pictures(shown)))
        else:
            restored = picture(scatter(_undo_norm(pred, found, raw), index, raw))
            assert restored is not None
            note = "normalized pixels, as the student gives them"
            rows.append(Row(f"prediction, raw{label}", _pictures(shown), note))
            note = "uses the target's mean and variance"
            rows.append(Row(f"prediction, de-normalized{label}", _pictures(restored), note))
    return rows


def components(scene: Scene) -> list[Row]:
    """Principal components of the patch features of whole images: the teacher's, if it gives features, and the student's."""
    rows, basis = [], "whole image; first three principal components, in a basis of its own"
    for name, label, _ in scene.terms():
        branch = scene.objective.terms[name]
        raw = scene.raw_target(name)
        if not branch.term.teacher.discrete and branch.teacher[0].picture(raw) is None:
            rows.append(Row(f"teacher's features{label}", _colours(raw, scene.grid), basis))
    tokens = scene.objective.student(scene.batch.views[scene.view])
    everywhere = torch.arange(scene.grid[0] * scene.grid[1]).expand(len(scene.batch), -1)
    return [*rows, Row("student's features", _colours(tokens.at(everywhere), scene.grid), basis)]


def attentions(scene: Scene) -> list[Row]:
    """Where the student's last block looks, the whole image given; nothing for students without such attention."""
    found = attention(scene.objective.student, scene.batch.views[scene.view])
    if found is None:
        return []
    note = f"{found.asked}; last block, mean of heads; bright is more"
    return [Row("student's attention", _heat(found.weights, scene.grid), note)]


ROWS: dict[str, Callable[[Scene], list[Row]]] = {
    "masks": masked_inputs,
    "targets": targets,
    "recon": predictions,
    "pca": components,
    "attention": attentions,
}
"""What can be shown, by name, in the order of a gallery."""


def example(objective: Objective, source: ImageSource, indices: list[int]) -> Batch:
    """Central crops of these images, masked as the recipe masks them."""
    recipe = objective.recipe
    views = Center.Config() if recipe.views.names == ("main",) else recipe.views
    sampling = Sampling(recipe.model_copy(update={"views": views}), objective.student.geometry, objective.renditions)
    return sampling.collate([sampling(source.read(index), 0, index) for index in indices])


def _undo_norm(pred: Tensor, found: Prediction, raw: Tensor) -> Tensor:
    """Predictions on the scale of the raw target: each token by the affine map from its normalized to its raw target."""
    assert found.query.index is not None
    everywhere = scatter(pred, found.query.index, found.dense)
    (std, mean), (normed_std, normed_mean) = (torch.std_mean(x, -1, keepdim=True) for x in (raw, found.dense))
    undone = (everywhere - normed_mean) * (std / normed_std.clamp_min(1e-6)) + mean
    return undone.gather(1, found.query.index.unsqueeze(-1).expand(-1, -1, raw.shape[-1]))


def _masked(title: str, scene: Scene, unseen: Tensor, note: str = "") -> Row:
    """unseen (B, N) bool; below each picture the share of its patches that it hides, counted."""
    captions = tuple(f"{100 * share:.1f} % hidden" for share in unseen.float().mean(1).tolist())
    return Row(title, _pictures(_hide(scene.image, unseen, scene.grid)), note, captions)


def _hide(image: Tensor, hidden: Tensor, grid: Size) -> Tensor:
    """Hidden patches in mid grey."""
    mask = hidden.view(-1, 1, *grid).float()
    return torch.where(
        torch.nn.functional.interpolate(mask, size=image.shape[-2:]) > 0.5, torch.full_like(image, 0.5), image
    )


def _pictures(image: Tensor) -> list[Pixels]:
    """(B, 3, H, W) in [0, 1] as enlarged uint8 pictures."""
    factor = max(1, SIDE // min(image.shape[-2:]))
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [one.repeat_interleave(factor, 0).repeat_interleave(factor, 1).numpy() for one in pixels]


def _colours(tokens: Tensor, grid: Size, basis: Tensor | None = None) -> list[Pixels]:
    """(B, N, D) as colours: the first three principal components of `basis`, each scaled to its 2nd and 98th percentile."""
    basis = tokens if basis is None else basis
    flat = basis.flatten(0, 1).float()
    centre = flat.mean(0)
    axes = torch.linalg.svd(flat - centre, full_matrices=False).Vh[:3].T
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # a component's sign is arbitrary
    reference, shown = (flat - centre) @ axes, (tokens.float() - centre) @ axes
    low, high = reference.quantile(0.02, dim=0), reference.quantile(0.98, dim=0)
    colours = (shown - low) / (high - low).clamp_min(1e-6)
    colours = torch.cat([colours, colours.new_zeros(*colours.shape[:2], 3 - colours.shape[-1])], -1)
    return _pictures(colours.transpose(1, 2).reshape(len(tokens), 3, *grid))


def _id_colours(ids: Tensor, grid: Size) -> list[Pixels]:
    """A fixed colour for every id."""
    generator = torch.Generator().manual_seed(0)
    palette = torch.rand(int(ids.max()) + 1, 3, generator=generator)
    return _pictures(palette[ids].transpose(1, 2).reshape(len(ids), 3, *grid))


def _heat(weights: Tensor, grid: Size) -> list[Pixels]:
    """(B, N) as colours from dark to bright, each picture scaled to its own lowest and highest value."""
    low, high = weights.amin(1, keepdim=True), weights.amax(1, keepdim=True)
    place = (weights - low) / (high - low).clamp_min(1e-12) * (len(HEAT) - 1)
    below = place.floor().clamp_max(len(HEAT) - 2).long()
    stops = torch.tensor(HEAT) / 255
    colours = torch.lerp(stops[below], stops[below + 1], (place - below).unsqueeze(-1))
    return _pictures(colours.transpose(1, 2).reshape(len(weights), 3, *grid))
