"""SplitMask's second term: what one fold says of the image, against what the other folds say of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from unimim import Encoded, Geometry, Head, Mask, Query, Student, Target, TargetSpec, Teacher, View


class OtherFold(Teacher):
    """T_k(I)_j = mean over folds k' != k of z_k'(j), and for the image the mean of that over the N patches j.

    z_k' (B, N, D) is what the student says of every patch when it sees fold k', with its gradient: both sides of the pair
    learn, as in El-Nouby et al., 2021 (arXiv 2112.10740), which matches the two means of SplitMask's decoder. That the mean
    is over all patches, seen or not, and that no gradient is stopped are our choices.
    """

    class Config(Teacher.Config):
        name: Literal["other_fold"] = "other_fold"

        @property
        def moves(self) -> bool:
            return True

        @property
        def reads_folds(self) -> bool:
            return True

        @property
        def differentiable(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "Self"

    def __init__(self, config: OtherFold.Config, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.num_tokens = config, geometry.num_tokens
        self.spec = TargetSpec(geometry.masked_dim)

    def bind(self, student: Student, head: Head) -> None:
        """ValueError unless the student says something of every patch."""
        if student.config.answers != "all":
            raise ValueError(
                f"teacher other_fold needs tokens of every patch, but student {student.config.name!r} answers for "
                f"{student.config.answers} patches alone; use student splitmask, or one with masking: replace"
            )

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        raise TypeError("other_fold is made of the student's folds: from_folds")

    def from_folds(self, others: Sequence[Encoded]) -> Target:
        """tokens (B, N, D) in raster order, image (B, 1, D)."""
        grid = torch.arange(self.num_tokens, device=others[0].tokens.device).expand(len(others[0].tokens), -1)
        tokens = torch.stack([other.at(grid).float() for other in others]).mean(0)
        return Target(tokens, tokens.mean(1, keepdim=True))


class Mean(Head):
    """H(z) = the mean of the student's tokens for the image; a patch's own token where patches are asked for."""

    class Config(Head.Config):
        name: Literal["mean"] = "mean"

        @property
        def needs_dense(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "/"

    def __init__(self, config: Mean.Config, student: Student, out_dim: int) -> None:
        """ValueError if the student's tokens are not as wide as the target."""
        super().__init__()
        if out_dim != student.geometry.masked_dim:
            raise ValueError(
                f"head mean hands on tokens of width {student.geometry.masked_dim}, but the target has {out_dim}; "
                f"use teacher other_fold, or head fc"
            )

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, D); (B, 1, D) for the image, which also stands in for the class token."""
        image = encoded.tokens.float().mean(1, keepdim=True)
        if query.index is None:
            return image
        tokens = encoded.at(query.index)
        return torch.cat([image, tokens], 1) if query.include_class else tokens
