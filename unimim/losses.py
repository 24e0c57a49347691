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
from .world import all_gather


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


class InfoNCE(Loss):
    """L_i = -log( exp(<p_i, t_i> / tau) / sum over keys k of exp(<p_i, k> / tau) ), with p, t and k on the unit sphere.

    negatives: "image", the keys are the targets of all patches of the same image, asked about or not (TencentARC/ConMIM @
    4263955, engine_for_pretraining.py); "world", they are the targets of all queries of the batch, gathered from all
    processes, with the gradient where the teacher has one (MoCo v3 @ c349e6e, moco/builder.py, gathers without and
    multiplies by 2 tau: the term's weight). With gradient accumulation the batch is the micro-batch.
    """

    class Config(Loss.Config):
        name: Literal["info_nce"] = "info_nce"
        temperature: float = Field(0.1, gt=0, le=1e3)
        negatives: Literal["image", "world"] = "image"

        @property
        def contrasts(self) -> bool:
            return self.negatives == "image"

        @property
        def world(self) -> bool:
            return self.negatives == "world"

        @property
        def label(self) -> str:
            return "InfoNCE"

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """keys (B, N, D) for negatives "image"; None: the queries' own targets."""
        pred, target = F.normalize(pred, dim=-1), F.normalize(target, dim=-1)
        agreement: Tensor = (pred * target).sum(-1) / self.config.temperature
        if self.config.negatives == "image" and keys is not None:
            return self._against(pred, F.normalize(keys, dim=-1), None) - agreement
        if self.config.negatives == "image":
            return self._against(pred, target, valid) - agreement
        everyone = all_gather(target).flatten(0, 1)
        real = None if valid is None else all_gather(valid.float()).flatten() > 0
        return self._against(pred, everyone, real) - agreement

    def _against(self, pred: Tensor, keys: Tensor, real: Tensor | None) -> Tensor:
        """log of the sum over keys (..., K, D), of those that are real (..., K), for pred (B, M, D) -> (B, M)."""
        logits: Tensor = pred @ keys.mT / self.config.temperature
        if real is not None:
            logits = logits.masked_fill(~real.unsqueeze(-2), -torch.inf)
        return logits.logsumexp(-1)


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
        def contrasts(self) -> bool:
            return any(part.loss.contrasts for part in self.losses)

        @property
        def num_groups(self) -> int | None:
            return next((part.loss.num_groups for part in self.losses if part.loss.num_groups is not None), None)

        @property
        def label(self) -> str:
            return " & ".join(part.loss.label for part in self.losses)

    def __init__(self, config: Sum.Config, spec: TargetSpec) -> None:
        super().__init__(config, spec)
        self.losses = nn.ModuleList(part.loss.build(spec) for part in config.losses)

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        total = torch.zeros((), device=pred.device)
        for part, loss in zip(self.config.losses, self.losses, strict=True):
            more = {"keys": keys} if part.loss.contrasts else {}
            total = total + part.weight * loss(pred, target, valid, **more)
        return total
