"""The UniGrad loss."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from unimim import Loss, all_reduce_sum


class UniGrad(Loss):
    """L_i = ( |p_i - t_i|^2 + lambda p_i^T C p_i ) / D, with C = sum over j of t_j t_j^T / n, (D, D).

    j runs over the n valid queries of all images and processes; no gradient flows into C, so that of a query is
    ( 2 (p - t) + 2 lambda C p ) / D. The second part keeps predictions from all pointing where targets do: targets that are
    alike make it large. Follows OpenGVLab/Siamese-Image-Modeling @ bbdec30, models_sim.py, compute_unigrad_loss, in float32.
    C is that of the step, or of the micro-batch under gradient accumulation, as there.
    Deviation: p^T C p is the sum of (p C) * p; the official code takes the diagonal of p C p^T, an (n, n) matrix of each
    process: 2.3 GiB at 128 images of 196 patches (benchmarks/unigrad.py).
    """

    class Config(Loss.Config):
        """negative_weight: lambda."""

        name: Literal["unigrad"] = "unigrad"
        negative_weight: float = Field(0.02, ge=0, le=1e3)

        @property
        def world(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "UniGrad"

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """pred, target (B, M, D), valid (B, M) bool or None -> (B, M)."""
        correlation = self.correlation(target, valid)
        agreement = ((pred @ correlation) * pred).sum(-1)
        squared = (pred - target).square().sum(-1)
        cost: Tensor = (squared + self.config.negative_weight * agreement) / pred.shape[-1]
        return cost

    @torch.no_grad()
    def correlation(self, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """target (B, M, D) -> C (D, D)."""
        flat = target.flatten(0, 1)
        real = flat.new_ones(len(flat), 1) if valid is None else valid.flatten().to(flat.dtype).unsqueeze(1)
        total = all_reduce_sum((flat * real).T @ flat)
        return total / all_reduce_sum(real.sum()).clamp_min(1)
