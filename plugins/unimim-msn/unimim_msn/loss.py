"""MSN's loss: assignments to prototypes, sharpened and balanced on the target's side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unimim import Loss, TargetSpec, all_reduce_sum


class MSN(Loss):
    """L = mean over anchors of -sum_k t_k log p_k, plus w (log K - H(p')), over all views of the student at once.

    p = softmax(<p, q_k> / tau) of an anchor p and K prototypes q, all on the unit sphere; t the same of its target, sharpened
    to t^(1/T) / sum, then balanced by Sinkhorn's algorithm so that the prototypes are used alike; t gets no gradient. p' is
    the mean of p over the anchors of all processes, and H its entropy (me-max). Follows facebookresearch/msn @ 4388dc1,
    src/losses.py and src/msn_train.py.
    Deviations: targets are balanced with each repeated for every anchor of its image, officially before they are repeated,
    which is the same; log p is a log-softmax, officially the logarithm of a power that can overflow.
    """

    class Config(Loss.Config):
        """num_prototypes: K.  temperature: tau.  sharpening: T.  sinkhorn: iterations, 0 for none.  me_max: w."""

        name: Literal["msn"] = "msn"
        num_prototypes: int = Field(1024, gt=1, le=2**20)
        temperature: float = Field(0.1, gt=0, le=1e3)
        sharpening: float = Field(0.25, gt=0, le=1)
        sinkhorn: int = Field(3, ge=0, le=1000)
        me_max: float = Field(1.0, ge=0, le=1e6)

        @property
        def joint(self) -> bool:
            return True

        @property
        def world(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "CrossEntropy"

    def __init__(self, config: MSN.Config, spec: TargetSpec) -> None:
        super().__init__(config, spec)
        bound = 1 / math.sqrt(spec.dim)
        self.prototypes = nn.Parameter(torch.empty(config.num_prototypes, spec.dim).uniform_(-bound, bound))
        self._health: dict[str, Tensor] = {}

    @property
    def health(self) -> Mapping[str, Tensor]:
        """prototypes_used: share that are some target's likeliest; prototypes_perplexity: exp of the entropy of p'."""
        return self._health

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """pred, target (A, 1, D) of A anchors -> ()."""
        logits = self.logits(pred.flatten(0, 1))
        wanted = self.assign(target.flatten(0, 1))
        cross_entropy = -(wanted * logits.log_softmax(-1)).sum(-1).mean()
        share = _mean_over_all(logits.softmax(-1))
        entropy = torch.special.entr(share).sum()
        with torch.no_grad():
            used = torch.zeros_like(share).scatter_(0, wanted.argmax(1), 1.0).mean()
        self._health = {"prototypes_used": used, "prototypes_perplexity": entropy.detach().exp()}
        cost: Tensor = cross_entropy + self.config.me_max * (math.log(self.config.num_prototypes) - entropy)
        return cost

    def logits(self, x: Tensor) -> Tensor:
        """x (n, D) -> (n, K)."""
        logits: Tensor = F.normalize(x, dim=-1) @ F.normalize(self.prototypes, dim=-1).T / self.config.temperature
        return logits

    @torch.no_grad()
    def assign(self, target: Tensor) -> Tensor:
        """target (n, D) -> t (n, K), rows that sum to 1."""
        sharp: Tensor = (self.logits(target) / self.config.sharpening).softmax(-1)
        return sinkhorn(sharp, self.config.sinkhorn)


def _mean_over_all(x: Tensor) -> Tensor:
    """x (n, K), n on each process -> (K,)."""
    count = all_reduce_sum(x.new_full((), len(x)))
    return all_reduce_sum(x.sum(0)) / count


def sinkhorn(x: Tensor, iterations: int) -> Tensor:
    """x (n, K) > 0 of every process: columns scaled to equal sums over all processes, then rows to 1, again and again."""
    for _ in range(iterations):
        x = x / all_reduce_sum(x.sum(0))
        x = x / x.sum(1, keepdim=True)
    return x
