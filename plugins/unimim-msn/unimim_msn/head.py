"""MSN's projector of the class token, whose statistics are of all views of one size together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unimim import Encoded, Head, Query, Student
from unimim.layers import BatchNorm


class Projector(Head):
    """H(z) = W3 f2(f1(z)), f(x) = GELU(BatchNorm(W x + b)): the class token for the image, a patch's own where asked for.

    The statistics of a BatchNorm are of all views of one size together, large ones and then small ones, and of all processes
    (officially SyncBatchNorm). Follows facebookresearch/msn @ 4388dc1, src/deit.py and
    src/msn_train.py; start values are torch's cut normal (0.02).
    """

    class Config(Head.Config):
        """hidden: width of both inner layers."""

        name: Literal["msn"] = "msn"
        hidden: int = Field(2048, gt=0, le=2**16)

        @property
        def needs_dense(self) -> bool:
            return True

        @property
        def needs_class(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "FC"

    def __init__(self, config: Projector.Config, student: Student, out_dim: int) -> None:
        super().__init__()
        dim, hidden = student.geometry.masked_dim, config.hidden
        self.fc1, self.bn1 = nn.Linear(dim, hidden), BatchNorm(hidden, world=True)
        self.fc2, self.bn2 = nn.Linear(hidden, hidden), BatchNorm(hidden, world=True)
        self.fc3 = nn.Linear(hidden, out_dim)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, out_dim); (B, 1, out_dim) for the image."""
        return self._project(encoded.asked(query))

    def forward_all(self, encoded: Sequence[Encoded], queries: Sequence[Query]) -> list[Any]:
        """One normalization for each run of views of one size, as the official encoder takes them."""
        answers: list[Any] = []
        for _, run in groupby(zip(encoded, queries, strict=True), lambda step: step[0].grid):
            asked = [one.asked(query) for one, query in run]
            flat = self._project(torch.cat([tokens.flatten(0, 1) for tokens in asked]))
            parts = flat.split([tokens.shape[0] * tokens.shape[1] for tokens in asked])
            answers += [part.view(*tokens.shape[:2], -1) for part, tokens in zip(parts, asked, strict=True)]
        return answers

    def _project(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.bn1(self.fc1(x)))
        x = nn.functional.gelu(self.bn2(self.fc2(x)))
        return self.fc3(x)  # type: ignore[no-any-return]
