"""A codebook over another teacher's vectors: from any dense teacher to a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from ..axes import Head, Student, Teacher, TeacherConfig
from ..layers.codebooks import lloyd_step, nearest, seed_codes
from ..types import Geometry, Mask, Target, TargetSpec, View


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
        def moves(self) -> bool:
            return self.teacher.moves

        def untrained(self) -> Self:
            return self.model_copy(update={"teacher": self.teacher.untrained()})

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
                codes = lloyd_step(x, codes, self.config.normalize)
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
