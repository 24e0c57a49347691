"""What a run says of its targets beside the loss, and what in it means a collapse."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .recipe import Recipe, Term
from .types import TargetSpec

LEAST_SPREAD, LEAST_PERPLEXITY = 1e-3, 1.5
"""Below these a target says nearly the same of every patch."""


@torch.no_grad()
def target_health(dense: Tensor, spec: TargetSpec) -> dict[str, Tensor]:
    """Scalars that show a target which says the same of every patch; nothing here waits for the device.

    dense (B, N, dim), normalized: the mean; over the channels the mean, least and greatest of the variance over all B N
    tokens (biased); and spread, the sum of the variances over the mean square length of a token, from 0 (all tokens
    equal: a collapse) to 1 (their mean is zero). ids (B, N): used = distinct ids / dim, and the perplexity
    exp(-sum_k p_k log p_k) of the shares p of the ids; perplexity 1 is a collapse.
    """
    if spec.discrete:
        ids = dense.flatten()
        counts = torch.zeros(spec.dim, device=ids.device).scatter_add_(
            0, ids, torch.ones_like(ids, dtype=torch.float32)
        )
        shares = counts / len(ids)
        return {"used": (counts > 0).float().mean(), "perplexity": torch.special.entr(shares).sum().exp()}
    tokens = dense.float().flatten(0, 1)
    variance = tokens.var(0, correction=0)
    length = tokens.square().sum(1).mean()
    return {
        "mean": tokens.mean(),
        "variance": variance.mean(),
        "variance_min": variance.min(),
        "variance_max": variance.max(),
        "spread": variance.sum() / length.clamp_min(torch.finfo(length.dtype).tiny),
    }


@torch.no_grad()
def agreement(pred: Tensor, target: Tensor) -> Tensor:
    """Mean cosine of pred (B, M, dim) and target (B, M, dim) over the queries."""
    return F.cosine_similarity(pred.float(), target.float(), dim=-1).mean()


def warnings(recipe: Recipe, values: Mapping[str, float]) -> list[str]:
    """What the logged scalars `target/<term>/<what>` say has gone wrong, and the likeliest cause."""
    found = []
    for name, term in recipe.terms.items():
        spread = values.get(f"target/{name}/spread", 1.0)
        perplexity = values.get(f"target/{name}/perplexity", float("inf"))
        seen = f"spread {spread:.1e} of 1" if spread < LEAST_SPREAD else f"perplexity {perplexity:.2f}"
        if spread < LEAST_SPREAD or perplexity < LEAST_PERPLEXITY:
            found.append(
                f"terms.{name}: the target says nearly the same of every patch ({seen}): it has collapsed. {_cause(term)}"
            )
    return found


def _cause(term: Term) -> str:
    if term.teacher.discrete:
        return "Likely: a codebook of which few codes are in use; fit it on more or other images, or take fewer codes."
    if not term.teacher.moves:
        return (
            "Likely: the images are all alike, the teacher's weights are random or damaged, or its mean and std are not "
            "those of its training."
        )
    if term.norm.name == "identity" and not term.loss.world and not term.loss.contrasts:
        return "Likely: nothing holds the target apart; set norm: layer (or instance, batch), or a contrasting loss."
    return "Likely: the teacher follows the student too fast; raise teacher.decay, or lower optimization.lr."
