"""Losses L: distances between a prediction and a target at each queried position."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .axes import Loss, LossConfig
from .schedule import Frozen
from .types import TargetSpec


class L1(Loss):
    """L = mean over D of |p - t|."""

    class Config(Loss.Config):
        name: Literal["l1"] = "l1"

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        return F.l1_loss(pred, target, reduction="none").mean(-1)


class L2(Loss):
    """L = mean over D of (p - t)^2."""

    class Config(Loss.Config):
        name: Literal["l2"] = "l2"

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        return F.mse_loss(pred, target, reduction="none").mean(-1)


class SmoothL1(Loss):
    """L = mean over D of d^2 / (2 beta) where |d| < beta, |d| - beta / 2 elsewhere, d = p - t."""

    class Config(Loss.Config):
        name: Literal["smooth_l1"] = "smooth_l1"
        beta: float = Field(1.0, gt=0)

        @property
        def label(self) -> str:
            return "Smooth-l1"

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        return F.smooth_l1_loss(pred, target, reduction="none", beta=self.config.beta).mean(-1)


class Cosine(Loss):
    """L = 1 - <p, t> / (|p| |t|) over D."""

    class Config(Loss.Config):
        name: Literal["cosine"] = "cosine"

        @property
        def label(self) -> str:
            return "Cosine"

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        return 1 - (F.normalize(pred, dim=-1) * F.normalize(target, dim=-1)).sum(-1)


class CrossEntropy(Loss):
    """L = -log softmax(p)[t], for ids t in [0, number of classes)."""

    class Config(Loss.Config):
        name: Literal["cross_entropy"] = "cross_entropy"

        @property
        def discrete(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "CrossEntropy"

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        return F.cross_entropy(pred.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)


class Variance(Loss):
    """L = mean over D of max(0, margin - sqrt(var(p) + eps)), var over all valid queries of the batch, unbiased.

    Keeps predictions from collapsing; the target is not read. Follows facebookresearch/data2vec_vision @ af9a363,
    beit/engine_for_cyclical.py (`var_w0`), per process as there. The value is repeated for every query, so that it can
    stand beside a per-query loss in a `sum`.
    """

    class Config(Loss.Config):
        name: Literal["variance"] = "variance"
        margin: float = Field(0.5, gt=0)
        eps: float = Field(1e-6, gt=0)

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        flat = pred.flatten(0, 1)
        weight = torch.ones_like(flat[:, :1]) if valid is None else valid.flatten().to(flat.dtype).unsqueeze(1)
        count = weight.sum()
        mean = (flat * weight).sum(0) / count
        variance = ((flat - mean).square() * weight).sum(0) / (count - 1)
        hinge = F.relu(self.config.margin - (variance + self.config.eps).sqrt()).mean()
        return hinge.expand(pred.shape[:2])


class Weighted(Frozen):
    """A loss and its weight inside a `sum`."""

    loss: LossConfig
    weight: float = Field(1.0, gt=0)


class Sum(Loss):
    """L = sum over k of w_k L_k of the same prediction and target."""

    class Config(Loss.Config):
        name: Literal["sum"] = "sum"
        losses: tuple[Weighted, ...] = Field(min_length=1)

        @property
        def discrete(self) -> bool:
            return any(part.loss.discrete for part in self.losses)

        @property
        def world(self) -> bool:
            return any(part.loss.world for part in self.losses)

        @property
        def label(self) -> str:
            return " & ".join(part.loss.label for part in self.losses)

    def __init__(self, config: Sum.Config, spec: TargetSpec) -> None:
        super().__init__(config, spec)
        self.losses = nn.ModuleList(part.loss.build(spec) for part in config.losses)

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        parts = [w.weight * loss(pred, target, valid) for w, loss in zip(self.config.losses, self.losses, strict=True)]
        return torch.stack(parts).sum(0)
