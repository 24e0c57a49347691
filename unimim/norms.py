"""Normalizations N of the target: parameter-free, float32, on the dense target (B, N, D)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .axes import Norm, NormConfig
from .world import all_reduce_sum, world_size


class Identity(Norm):
    """N(x) = x."""

    class Config(Norm.Config):
        name: Literal["identity"] = "identity"

        @property
        def label(self) -> str:
            return "/"

    def forward(self, x: Tensor) -> Tensor:
        return x


class Layer(Norm):
    """N(x) = (x - mean) / sqrt(var + eps) over the D numbers of each token; a constant token becomes zero.

    unbiased: variance over D - 1, as MAE's normalized pixels have it (facebookresearch/mae @ efb2a80, models_mae.py: eps
    1e-6, inside the root); biased, eps 1e-5 is torch's layer_norm, as data2vec uses. eps_place "outside" divides by
    sqrt(var) + eps instead.
    """

    class Config(Norm.Config):
        name: Literal["layer"] = "layer"
        unbiased: bool = False
        eps: float = Field(1e-5, gt=0)
        eps_place: Literal["inside", "outside"] = "inside"

        @property
        def label(self) -> str:
            return "LayerNorm"

    def forward(self, x: Tensor) -> Tensor:
        if not self.config.unbiased and self.config.eps_place == "inside":
            return F.layer_norm(x, x.shape[-1:], eps=self.config.eps)
        centered = x - x.mean(-1, keepdim=True)
        variance = centered.square().sum(-1, keepdim=True) / max(x.shape[-1] - int(self.config.unbiased), 1)
        return centered / _deviation(variance, self.config.eps, self.config.eps_place)


class Instance(Norm):
    """N(x) = (x - mean) / sqrt(var + eps) over the N tokens of each image, channel by channel, biased variance."""

    class Config(Norm.Config):
        name: Literal["instance"] = "instance"
        eps: float = Field(1e-5, gt=0)

        @property
        def label(self) -> str:
            return "InstanceNorm"

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
        return (x - mean) * torch.rsqrt(variance + self.config.eps)


class Batch(Norm):
    """N(x) = (x - mean) / sqrt(var + eps) over all tokens of all images of the global batch, channel by channel, biased.

    Statistics are shared by all processes (data2vec's official option keeps them per process). Under gradient accumulation
    they are those of the micro-batch.
    """

    class Config(Norm.Config):
        name: Literal["batch"] = "batch"
        eps: float = Field(1e-5, gt=0)

        @property
        def world(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "BatchNorm"

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0] * x.shape[1] * world_size()
        mean = all_reduce_sum(x.sum((0, 1))) / count
        variance = all_reduce_sum((x - mean).square().sum((0, 1))) / count
        return (x - mean) * torch.rsqrt(variance + self.config.eps)


class L2(Norm):
    """N(x) = x / max(|x|, eps) over the D numbers of each token."""

    class Config(Norm.Config):
        name: Literal["l2"] = "l2"
        eps: float = Field(1e-12, gt=0)

        @property
        def label(self) -> str:
            return "l2-Norm"

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=self.config.eps)


class Chain(Norm):
    """N(x) = N_k(... N_1(x)); a list in a recipe."""

    class Config(Norm.Config):
        name: Literal["chain"] = "chain"
        norms: tuple[NormConfig, ...] = Field(min_length=1)

        @property
        def world(self) -> bool:
            return any(norm.world for norm in self.norms)

        @property
        def label(self) -> str:
            return " + ".join(norm.label for norm in self.norms)

    def __init__(self, config: Chain.Config) -> None:
        super().__init__(config)
        self.norms = torch.nn.ModuleList(norm.build() for norm in config.norms)

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(x)
        return x


def _deviation(variance: Tensor, eps: float, place: str) -> Tensor:
    if place == "inside":
        return (variance + eps).sqrt()
    return variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt() + eps  # sqrt has no slope at zero
