"""Pictures of what a recipe sees, is asked for, and answers, on the same images for every recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.data.sources import ImageSource
from ..objective import Objective, Prediction
from ..sampling import Sampling
from ..types import Batch, Size, scatter
from ..views import Center

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
SIDE = 96
"""Pixels of a picture's shorter side in the gallery."""


@dataclass(frozen=True)
class Row:
    """One picture (H, W, 3) uint8 for each image."""

    title: str
    images: list[Pixels]
    note: str = ""


@torch.no_grad()
def gallery(objective: Objective, source: ImageSource, indices: list[int]) -> list[Row]:
    """Input, masked input, target, prediction, and features of student and teacher on whole images, as colours."""
    training = objective.training
    objective.eval()
    batch = example(objective, source, indices)
    grid = objective.student.geometry.grid
    view = next(iter(batch.masks))
    image, hidden = batch.views[view].pixels(), batch.masks[view][0].unseen
    rows = [Row("input", _pictures(image)), Row("masked input", _pictures(_hide(image, hidden, grid)))]
    predictions = objective.predictions(batch)
    for name, found in predictions.items():
        label = f" ({name})" if len(predictions) > 1 else ""
        rows += _answers(objective, name, batch, found[0], label)
    tokens = objective.student(batch.views[view]).at(torch.arange(hidden.shape[1]).expand(len(hidden), -1))
    rows.append(Row("student's features", _colours(tokens, grid), "whole image; first three principal components"))
    objective.train(training)
    return rows


def example(objective: Objective, source: ImageSource, indices: list[int]) -> Batch:
    """Central crops of these images, masked as the recipe masks them."""
    recipe = objective.recipe
    views = Center.Config() if recipe.views.names == ("main",) else recipe.views
    sampling = Sampling(recipe.model_copy(update={"views": views}), objective.student.geometry, objective.renditions)
    return sampling.collate([sampling(source.read(index), 0, index) for index in indices])


def _answers(objective: Objective, name: str, batch: Batch, found: Prediction, label: str) -> list[Row]:
    """Target and prediction rows of one term."""
    branch, grid = objective.terms[name], objective.student.geometry.grid
    teacher, query, pred = branch.teacher[0], found.query, found.preds[0].float()
    if query.index is None:
        return []
    raw = teacher(batch.views[branch.term.view], batch.masks["main"][0] if "main" in batch.masks else None).tokens
    if branch.term.teacher.discrete:
        ids = scatter(pred.argmax(-1, keepdim=True), query.index, raw.unsqueeze(-1)).squeeze(-1)
        return [Row(f"target ids{label}", _id_colours(raw, grid)), Row(f"predicted ids{label}", _id_colours(ids, grid))]
    target = teacher.picture(raw)
    if target is not None:
        restored = scatter(_undo_norm(pred, found, raw), query.index, raw)
        note = "" if branch.term.norm.name == "identity" else "uses the target's mean and variance"
        shown = teacher.picture(restored)
        return [Row(f"target{label}", _pictures(target)), Row(f"prediction{label}", _pictures(shown), note)]  # type: ignore[arg-type]
    answer = scatter(pred, query.index, found.dense)
    target_rows, answer_rows = _colours(found.dense, grid), _colours(answer, grid, basis=found.dense)
    note = "first three principal components of the targets"
    return [
        Row(f"target{label}", target_rows, note),
        Row(f"prediction{label}", answer_rows, "in the colours of the target"),
    ]


def _undo_norm(pred: Tensor, found: Prediction, raw: Tensor) -> Tensor:
    """Predictions on the scale of the raw target: each token by the affine map from its normalized to its raw target."""
    assert found.query.index is not None
    everywhere = scatter(pred, found.query.index, found.dense)
    (std, mean), (normed_std, normed_mean) = (torch.std_mean(x, -1, keepdim=True) for x in (raw, found.dense))
    undone = (everywhere - normed_mean) * (std / normed_std.clamp_min(1e-6)) + mean
    return undone.gather(1, found.query.index.unsqueeze(-1).expand(-1, -1, raw.shape[-1]))


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
    torch.manual_seed(0)
    axes = torch.pca_lowrank(flat - centre, q=min(3, *flat.shape), center=False)[2]
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
