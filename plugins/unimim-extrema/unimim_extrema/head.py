"""ExtreMA's head: a projector, which the momentum copy has too, and a predictor, which it has not."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from unimim import Encoded, Head, Query, Student
from unimim.layers import init_xavier


class ProjectorPredictor(Head):
    """H(z) = predictor(projector(z)); a self-teacher's copy answers projector(z).

    projector: three linear layers of width `hidden`, `hidden` and that of the target; predictor: two, of `hidden` and that of
    the target; a LayerNorm (eps 1e-5) and a GELU between any two. z is the class token for the image, and the patch's own
    token at a queried position. Follows microsoft/ExtreMA @ bf30b64, lib/builder.py, where only the image is asked about.
    """

    class Config(Head.Config):
        name: Literal["extrema"] = "extrema"
        hidden: int = Field(4096, gt=0, le=2**16)

        @property
        def needs_dense(self) -> bool:
            return True

        @property
        def needs_class(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "Predictor"

    student_only = ("predictor",)

    def __init__(self, config: ProjectorPredictor.Config, student: Student, out_dim: int) -> None:
        super().__init__()
        self.projector = _mlp(student.geometry.masked_dim, config.hidden, config.hidden, out_dim)
        self.predictor = _mlp(out_dim, config.hidden, out_dim)
        init_xavier(self)

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, out_dim); (B, 1, out_dim) for the image."""
        return self.predictor(self.target(encoded, query))  # type: ignore[no-any-return]

    def target(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, out_dim) of the projector."""
        return self.projector(encoded.asked(query))  # type: ignore[no-any-return]


def _mlp(*widths: int) -> nn.Sequential:
    """Linear layers from width to width, with norm and GELU after all but the last."""
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [nn.Linear(narrow, wide), nn.LayerNorm(wide), nn.GELU()]
    return nn.Sequential(*layers[:-2])
