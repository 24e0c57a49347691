"""The squared error of a prediction that is normalized first."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unimim import Loss


class LayerL2(Loss):
    """L = mean over D of (LN(p) - t)^2, LN(p) = (p - mean p) / sqrt(var p + eps), without parameters, biased.

    The target's own norm belongs to the term. Neither the scale of p nor a constant added to it matters, which a plain l2
    would learn. Follows LightDXY/BootMAE @ d604b18, run_pretraining.py.
    """

    class Config(Loss.Config):
        name: Literal["layer_l2"] = "layer_l2"
        eps: float = Field(1e-6, gt=0)

        @property
        def label(self) -> str:
            return "l2"

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """pred, target (B, M, D) -> (B, M)."""
        normed = F.layer_norm(pred, pred.shape[-1:], eps=self.config.eps)
        return F.mse_loss(normed, target, reduction="none").mean(-1)
