"""One linear layer as the head."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ..axes import Head, Student
from ..layers.blocks import init_truncated, init_xavier
from ..types import Encoded, Query


class FC(Head):
    """H(z) = W z + b at the queried tokens only; the class token answers for the image.

    Follows BEiT's lm_head (microsoft/unilm @ 768a3c8, beit/modeling_pretrain.py): no norm of its own.
    """

    class Config(Head.Config):
        name: Literal["fc"] = "fc"
        init: Literal["truncated", "xavier"] = "truncated"

        @property
        def needs_dense(self) -> bool:
            return True

        @property
        def needs_class(self) -> bool:
            return True

        @property
        def reads_asked(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "FC"

    def __init__(self, config: FC.Config, student: Student, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(student.geometry.masked_dim, out_dim)
        (init_truncated if config.init == "truncated" else init_xavier)(self)

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, out_dim)."""
        return self.proj(encoded.asked(query))  # type: ignore[no-any-return]
