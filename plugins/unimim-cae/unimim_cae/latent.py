"""CAE's alignment: latents that the student predicts, against those it computes from the hidden patches themselves."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from unimim import Encoded, Geometry, Head, Mask, Query, Student, Target, TargetSpec, Teacher, View

from .student import CAE


class LatentTeacher(Teacher):
    """T(I)_i = P(E([class, hidden patches]))_i with the student's live weights, at hidden positions i; zero elsewhere.

    E and P are those of student `cae`, as they are at this step and in the mode they are in, so drop path draws anew; it is
    not differentiable, so no gradient flows. The official alignment encoder is a second module whose parameters share the
    encoder's storage from the first step on (Atten4Vis/CAE @ a7fd162, models/modeling_cae.py, alignment_parameter_update):
    the same thing.
    """

    class Config(Teacher.Config):
        name: Literal["cae_latent"] = "cae_latent"

        @property
        def moves(self) -> bool:
            return True

        @property
        def needs_mask(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "Self"

    def __init__(self, config: LatentTeacher.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.spec = TargetSpec(geometry.masked_dim)
        self._student: list[CAE] = []  # a plain list: the objective owns the student

    def bind(self, student: Student, head: Head) -> None:
        """ValueError unless the student is `cae`."""
        if not isinstance(student, CAE):
            raise ValueError(
                f"teacher cae_latent reads the encoder of student cae, not {student.config.name!r}; "
                f"teacher {{name: self, weights: live, region: hidden}} does the same with a student that drops"
            )
        self._student = [student]

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N, regressor_dim)."""
        assert mask is not None, "needs_mask promises one"
        (student,) = self._student
        tokens = student.project(student.encode(view, mask.hidden_index))[:, 1:]
        dense = tokens.new_zeros(len(tokens), self.geometry.num_tokens, tokens.shape[-1])
        return Target(dense.scatter(1, mask.hidden_index.unsqueeze(-1).expand_as(tokens), tokens))


class LatentHead(Head):
    """H(z) = z: the student's tokens at the queried positions; its class token for the image."""

    class Config(Head.Config):
        name: Literal["cae_latent"] = "cae_latent"

        @property
        def needs_dense(self) -> bool:
            return True

        @property
        def needs_class(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "/"

    def __init__(self, config: LatentHead.Config, student: Student, out_dim: int) -> None:
        """ValueError if the student's tokens are not as wide as the target."""
        super().__init__()
        if out_dim != student.geometry.masked_dim:
            raise ValueError(
                f"head cae_latent hands on tokens of width {student.geometry.masked_dim}, but the target has {out_dim}; "
                f"use teacher cae_latent, or head fc"
            )

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, D); (B, 1, D) for the image."""
        return encoded.asked(query)
