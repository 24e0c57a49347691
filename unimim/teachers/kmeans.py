"""A codebook over another teacher's vectors: from any dense teacher to a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from ..axes import Head, Student, Teacher, TeacherConfig
from ..types import Geometry, Mask, Target, TargetSpec, View

_ROOM = 2**24
"""Distances held at once while fitting."""


def nearest(x: Tensor, codes: Tensor) -> Tensor:
    """argmin_k ||x_n - c_k||^2 = argmin_k (||c_k||^2 - 2 x_n c_k): x (n, D), codes (K, D) -> ids (n,) int64."""
    return torch.addmm(codes.square().sum(1), x, codes.T, alpha=-2).argmin(1)


def seed_codes(x: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each next code is a token drawn in proportion to the squared distance
    to the codes so far. x (n, D) -> (num_codes, D)."""
    chosen = torch.randint(len(x), (1,), generator=generator, device=x.device)
    codes, distance = [x[chosen]], torch.full((len(x),), torch.inf, device=x.device)
    while len(codes) < num_codes:
        distance = torch.minimum(distance, (x - codes[-1]).square().sum(1))
        chance = distance.clamp_min(
            torch.finfo(x.dtype).tiny
        )  # all zero when there are fewer distinct tokens than codes
        codes.append(x[chance.multinomial(1, generator=generator)])
    return torch.cat(codes)


def assign(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """ids (n,) of the nearest codes and squared distances (n,) to them, chunk by chunk."""
    ids = torch.cat([nearest(part, codes) for part in torch.split(x, max(1, _ROOM // len(codes)))])
    return ids, (x - codes[ids]).square().sum(1)


def update(x: Tensor, codes: Tensor, normalize: bool) -> Tensor:
    """One Lloyd step: each code moves to the mean of its tokens (on the unit sphere if `normalize`), and a code without
    tokens to the token farthest from its own code, so the inertia never rises. The same bits on every run."""
    ids, distance = assign(x, codes)
    sums, counts = torch.zeros_like(codes), torch.zeros(len(codes), device=x.device)
    every = torch.arange(len(codes), device=x.device)
    rows = max(1, _ROOM // len(codes))
    for part, own in zip(torch.split(x, rows), torch.split(ids, rows), strict=True):
        member = (own.unsqueeze(1) == every).to(x.dtype)  # a product, because index_add_ on CUDA sums in any order
        sums, counts = sums.addmm_(member.T, part), counts + member.sum(0)
    dead = counts == 0
    means = sums / counts.clamp_min(1).unsqueeze(1)
    means = F.normalize(means, dim=1) if normalize else means
    far = distance.topk(len(codes)).indices
    return torch.where(dead.unsqueeze(1), x[far[(dead.cumsum(0) - 1).clamp_min(0)]], means)


class KMeans(Teacher):
    """T(I)_i = argmin_k ||t_i - c_k||^2: the nearest of `num_codes` codes to another teacher's vector at patch i.

    The codes come from Lloyd's algorithm on tokens of the training data, once, before training: `fit`. With `normalize`
    tokens and codes lie on the unit sphere, and the nearest code is the one of highest cosine similarity. Over pixels
    this is the light tokenizer of SplitMask (arXiv 2112.10740); a teacher that moves is kept as it was when fitted.
    """

    class Config(Teacher.Config):
        """max_tokens: how many tokens to fit on, the first that come.  seed: of the k-means++ start."""

        name: Literal["kmeans"] = "kmeans"
        teacher: TeacherConfig
        num_codes: int = Field(8192, gt=1, le=2**20)
        normalize: bool = False
        iterations: int = Field(20, ge=0, le=10_000)
        max_tokens: int = Field(262144, gt=1, le=2**24)
        seed: int = Field(0, ge=0, lt=2**32)

        @field_validator("teacher")
        @classmethod
        def _vectors(cls, teacher: Teacher.Config) -> Teacher.Config:
            if teacher.discrete or teacher.needs_mask or teacher.differentiable:
                raise ValueError(f"kmeans needs a frozen teacher of vectors over the whole image, not {teacher.name!r}")
            return teacher

        @property
        def discrete(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return f"k-means({self.teacher.label})"

    codes: Tensor
    fitted: Tensor

    def __init__(self, config: KMeans.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config = config
        self.teacher = config.teacher.build(geometry)
        self.rendition = self.teacher.rendition
        self.spec = TargetSpec(config.num_codes, discrete=True)
        self.register_buffer("codes", torch.zeros(config.num_codes, self.teacher.spec.dim))
        self.register_buffer("fitted", torch.tensor(False))
        self._known = False  # `fitted` as last read: once true, no step waits for the device to ask again

    def bind(self, student: Student, head: Head) -> None:
        self.teacher.bind(student, head)

    @property
    def needs_fit(self) -> bool:
        self._known = self._known or bool(self.fitted)
        return not self._known

    @torch.no_grad()
    def fit(self, views: Iterable[View]) -> None:
        """Fit the codes to the first `max_tokens` tokens of `views`. ValueError if there are fewer than codes."""
        x = self._collect(views)
        if len(x) < self.config.num_codes:
            raise ValueError(f"kmeans: {len(x)} tokens cannot make {self.config.num_codes} codes; fit on more images")
        with torch.autocast(x.device.type, enabled=False):
            generator = torch.Generator(x.device).manual_seed(self.config.seed)
            codes = seed_codes(x, self.config.num_codes, generator)
            for _ in range(self.config.iterations):
                codes = update(x, codes, self.config.normalize)
        self.codes.copy_(codes)
        self.fitted.fill_(True)

    def _collect(self, views: Iterable[View]) -> Tensor:
        """(n, D) tokens, n up to `max_tokens`."""
        parts: list[Tensor] = []
        missing = self.config.max_tokens
        for view in views:
            tokens, _ = self._tokens(view)
            parts.append(tokens.flatten(0, 1)[:missing])
            missing -= len(parts[-1])
            if missing == 0:
                break
        return torch.cat(parts) if parts else self.codes[:0]

    def _tokens(self, view: View) -> tuple[Tensor, Target]:
        """(B, N, D) float32 as the codes see them, and the target they come from."""
        target = self.teacher(view)
        tokens = target.tokens.float()
        return F.normalize(tokens, dim=-1) if self.config.normalize else tokens, target

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N) int64. ValueError before `fit` or a checkpoint has filled the codes."""
        if self.needs_fit:
            raise ValueError("teacher kmeans has no codes yet: call fit(views), or load a checkpoint that holds them")
        tokens, target = self._tokens(view)
        with torch.autocast(tokens.device.type, enabled=False):
            ids = nearest(tokens.flatten(0, 1), self.codes)
        return Target(ids.view(tokens.shape[:2]), saliency=target.saliency)
