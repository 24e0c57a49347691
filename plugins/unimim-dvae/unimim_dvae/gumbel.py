"""A discrete bottleneck by the Gumbel-softmax relaxation, and a decoder behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from unimim import Encoded, Head, Penalized, Progress, Query, Schedule, Student
from unimim.layers import DALLE_STRIDE, Conv, gather, patchify

from .decoder import Decoder


class Gumbel(Head):
    """H(z)_i = pixels under token i of decoder(sum_k y_ik e_k), y_i = softmax((l_i + g_i) / tau), l_i = W z_i + b.

    g: Gumbel noise, new at every step; tau: the temperature of the relaxation. In eval mode there is no noise and y_i is
    one-hot at argmax_k l_ik. Each query also costs kl_weight KL(q_i || uniform) = kl_weight (log K - entropy(q_i)) in nats,
    q_i = softmax(l_i). Logits, softmax and the code embedding are float32 whatever the run's precision. Ramesh et al., 2021,
    section 2.1 and appendix A; the networks are those of openai/DALL-E @ 5be4b23, dall_e/encoder.py and decoder.py.
    """

    class Config(Head.Config):
        """vocab_size: K codes.  num_init: their width.  num_hidden: n, of the decoder.  tau, kl_weight: numbers or schedules
        over the training; the weight stands beside a loss that is a mean over 192 pixels, so the paper's beta is 192 times it.
        """

        name: Literal["gumbel"] = "gumbel"
        vocab_size: int = Field(8192, gt=1, le=2**20)
        num_init: int = Field(128, gt=0, le=2**16)
        num_hidden: int = Field(256, ge=4, le=2**13, multiple_of=4)
        blocks_per_group: int = Field(2, gt=0, le=1024)
        tau: Schedule = Field(Schedule(start=1.0, end=1 / 16, shape="cosine"))
        kl_weight: Schedule = Field(Schedule(start=0.0, end=0.0))

        @field_validator("tau")
        @classmethod
        def _positive(cls, tau: Schedule) -> Schedule:
            if min(tau.start, tau.end) <= 0:
                raise ValueError("the temperature stays above 0; the paper ends at 0.0625")
            return tau

        @field_validator("kl_weight")
        @classmethod
        def _not_negative(cls, weight: Schedule) -> Schedule:
            if min(weight.start, weight.end) < 0:
                raise ValueError("a negative weight would reward codes that say nothing else; use 0 or more")
            return weight

        @property
        def needs_dense(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "Gumbel decoder"

    def __init__(self, config: Gumbel.Config, student: Student, out_dim: int) -> None:
        """ValueError for tokens or targets that are not 8 x 8 RGB pixels, or for a student that drops patches."""
        super().__init__()
        _check(student, out_dim)
        self.config, self.grid = config, student.geometry.grid
        self.output = Conv(student.dim, config.vocab_size, 1)
        self.codes = Conv(config.vocab_size, config.num_init, 1)
        self.decoder = Decoder(config.num_init, config.num_hidden, config.blocks_per_group)
        self.fraction = 0.0
        self._health: dict[str, Tensor] = {}

    def on_step_start(self, progress: Progress) -> None:
        self.fraction = progress.fraction

    @property
    def health(self) -> Mapping[str, Tensor]:
        """Of the last forward: used = distinct argmax codes / K, their perplexity, tau, and the mean KL in nats."""
        return self._health

    def forward(self, encoded: Encoded, query: Query) -> Penalized:
        """-> pixels (B, M, 192), mapped by 0.8 x + 0.1 if the target is, and the KL's price (B, M); for the image their mean
        over the patches (M = 1). ValueError for the class token, which nothing here can paint."""
        if query.include_class:
            raise ValueError("head gumbel paints patches, not a class token; use where: all")
        with torch.autocast(encoded.tokens.device.type, enabled=False):
            logits = self.logits(encoded)
            kl = uniform_kl(logits)
            embedded = self.embed(logits)
        pixels = patchify(self.decoder(embedded), (DALLE_STRIDE, DALLE_STRIDE))
        self._health = self._measure(logits.detach(), kl.detach())
        penalty = self.config.kl_weight(self.fraction) * kl
        if query.index is None:
            return Penalized(pixels.mean(1, keepdim=True), penalty.mean(1, keepdim=True))
        return Penalized(gather(pixels, query.index), gather(penalty, query.index))

    def logits(self, encoded: Encoded) -> Tensor:
        """(B, K, h, w) float32."""
        logits: Tensor = self.output(encoded.tokens.float().mT.unflatten(2, self.grid))
        return logits

    def embed(self, logits: Tensor) -> Tensor:
        """(B, K, h, w) -> (B, num_init, h, w): a mixture of codes in training, the best one in eval mode."""
        if self.training:
            mixed: Tensor = self.codes(F.gumbel_softmax(logits, self.config.tau(self.fraction), dim=1))
            return mixed
        best = F.embedding(logits.argmax(1), self.codes.w.flatten(1).mT) + self.codes.b
        return best.permute(0, 3, 1, 2)

    def _measure(self, logits: Tensor, kl: Tensor) -> dict[str, Tensor]:
        ids = logits.argmax(1).flatten()
        counts = torch.zeros(self.config.vocab_size, device=ids.device)
        shares = counts.scatter_add_(0, ids, torch.ones_like(ids, dtype=torch.float32)) / len(ids)
        return {
            "used": (shares > 0).float().mean(),
            "perplexity": torch.special.entr(shares).sum().exp(),
            "tau": torch.full((), self.config.tau(self.fraction), device=ids.device),
            "kl": kl.mean(),
        }


def uniform_kl(logits: Tensor) -> Tensor:
    """KL(softmax(l) || uniform) = log K - entropy: logits (B, K, h, w) -> (B, h w), in nats, from 0 to log K."""
    log_q = logits.log_softmax(1)
    kl: Tensor = (log_q.exp() * log_q).sum(1).flatten(1) + math.log(logits.shape[1])
    return kl


def _check(student: Student, out_dim: int) -> None:
    problem = ""
    if student.geometry.patch != (DALLE_STRIDE, DALLE_STRIDE):
        problem = f"it paints 8 x 8 pixels a token, but the student's tokens stand for {student.geometry.patch}"
    elif out_dim != 3 * DALLE_STRIDE**2:
        problem = f"it paints 8 x 8 RGB pixels, 192 numbers, but the target has {out_dim}; use teacher pixel"
    elif not student.config.dense:
        problem = f"it needs a token at every position, but student {student.config.name!r} drops hidden ones"
    if problem:
        raise ValueError(f"head gumbel: {problem}")
