"""The head that makes a tokenizer of the student: VQ-KD's codebook and decoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimim import Encoded, Head, Penalized, Progress, Query, Student, View, plugins
from unimim.layers import gather

from .codebook import Codebook

FIT_TOKENS = 2**17
"""Vectors that the k-means start sees, the first that come: 669 images of 196 patches, a few more than the official batch."""


class Quantizer(Head):
    """H(S) = W4 tanh(W3 ViT(q(z))), z = u(W2 tanh(W1 S)), u(x) = x / |x|; penalty w mean over code_dim of (q(z) - z)^2.

    q: the nearest of num_codes unit codes (`Codebook`), with the gradient of z. ViT: a plain decoder over the map of codes,
    with patches of one code, a class token, learned positions and a final norm. z and q are float32 outside autocast. The
    gradient of the penalty is that of z alone. Trained with `where: all` on a whole image, this head and its student are
    BEiT v2's tokenizer: microsoft/unilm @ 768a3c8, beit2/modeling_vqkd.py (VQKD).
    Deviation: matrices of the decoder start as the student's do, cut at one deviation (0.011 of 0.02 remain).
    """

    class Config(Head.Config):
        """num_codes, code_dim: codes (num_codes, code_dim).  dim, depth, num_heads: the decoder's.
        decay: d of the codes' moving average.  commitment_weight: w.
        """

        name: Literal["vqkd"] = "vqkd"
        num_codes: int = Field(8192, gt=1, le=2**20)
        code_dim: int = Field(32, gt=0, le=1024)
        dim: int = Field(768, gt=0, le=2**16)
        depth: int = Field(3, gt=0, le=1024)
        num_heads: int = Field(12, gt=0, le=2**16)
        decay: float = Field(0.99, ge=0, lt=1)
        commitment_weight: float = Field(1.0, ge=0, le=1e6)

        @model_validator(mode="after")
        def _divides(self) -> Quantizer.Config:
            if self.dim % self.num_heads:
                raise ValueError(f"dim {self.dim} does not divide into num_heads {self.num_heads}")
            return self

        @property
        def needs_dense(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "VQ Decoder"

    def __init__(self, config: Quantizer.Config, student: Student, out_dim: int) -> None:
        super().__init__()
        self.config = config
        self.project = _mlp(student.dim, config.code_dim)
        self.codebook = Codebook(config.num_codes, config.code_dim, config.decay)
        self.decoder = _decoder(config, student.geometry.grid)
        self.predict = _mlp(config.dim, out_dim)

    def forward(self, encoded: Encoded, query: Query) -> Penalized:
        """-> preds (B, M, out_dim), penalty (B, M). For the image, the decoder's class token and the mean penalty."""
        z = self.encode(encoded)
        with torch.autocast(z.device.type, enabled=False):
            quantized, _, cost = self.codebook(z)
        decoded = self.decoder(View(quantized.mT.unflatten(2, encoded.grid)))
        return Penalized(self.predict(decoded.asked(query)), self.config.commitment_weight * _costs(cost, query))

    def encode(self, encoded: Encoded) -> Tensor:
        """z (B, N, code_dim) of every patch."""
        with torch.autocast(encoded.tokens.device.type, enabled=False):
            return F.normalize(self.project(encoded.tokens.float()), dim=-1)

    @property
    def needs_fit(self) -> bool:
        return self.codebook.needs_fit

    @torch.no_grad()
    def fit(self, encoded: Iterable[Encoded]) -> None:
        """The codes by k-means over the first FIT_TOKENS vectors z."""
        parts: list[Tensor] = []
        missing = FIT_TOKENS
        for part in encoded:
            parts.append(self.encode(part).flatten(0, 1)[:missing])
            missing -= len(parts[-1])
            if missing == 0:
                break
        with torch.autocast(parts[0].device.type, enabled=False):
            self.codebook.fit(torch.cat(parts))

    def on_step_start(self, progress: Progress) -> None:
        self.codebook.on_step_start()

    def on_step_end(self, progress: Progress) -> None:
        self.codebook.on_step_end()

    @property
    def health(self) -> Mapping[str, Tensor]:
        return self.codebook.health


def _mlp(dim: int, out_dim: int) -> nn.Sequential:
    """Linear, tanh, linear; start values as officially: normal of 0.02, zero biases."""
    first, last = nn.Linear(dim, dim), nn.Linear(dim, out_dim)
    for layer in (first, last):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.Tanh(), last)


def _decoder(config: Quantizer.Config, grid: tuple[int, int]) -> Any:
    """A student that sees an image of one pixel a patch, whose channels are a code."""
    pixels = {"channels": config.code_dim, "mean": (0.0,) * config.code_dim, "std": (1.0,) * config.code_dim}
    sizes = {
        "image_size": grid,
        "patch_size": 1,
        "dim": config.dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
    }
    return plugins()["students"]["vit"].Config(masking="none", qkv_bias="qv", **sizes, **pixels).build()


def _costs(cost: Tensor, query: Query) -> Tensor:
    """cost (B, N) -> (B, M) at the queried patches; of the image, and of the class token, their mean."""
    mean = cost.mean(1, keepdim=True)
    if query.index is None:
        return mean
    own = gather(cost, query.index)
    return torch.cat([mean, own], 1) if query.include_class else own
