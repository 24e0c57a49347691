"""One linear layer that is asked twice: BEiT v2's patch aggregation."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimim import Encoded, Head, Query, Student, Tap
from unimim.layers import Block, RelativePositionBias, init_truncated, sequence_rows


class Aggregation(Head):
    """H(S) = (W N(x) + b, W N(y) + b) at the queried tokens, y = B_k(... B_1([c | p])).

    x: the student's last block; c: its class token; p: the patches after an early block; all before the student's final
    norm N. What the class token does not say of the whole image the blocks B cannot tell the early patches, so that it
    learns to. N and W serve both predictions, whose losses add. B are as wide as the student's blocks and see its shared
    position bias, or have one each if its blocks do. Follows microsoft/unilm @ 768a3c8, beit2/modeling_pretrain.py
    (VisionTransformerForMaskedImageModelingCLS), start values included: those of B stay torch's own, since they are made
    after the others were drawn, and only their outputs are divided by sqrt(2 l), l their place after the early block.
    """

    class Config(Head.Config):
        """early: the block (0-based) whose patches are read.  last: the student's last block.  num_blocks: k.
        shared: N and W serve both; if not, the second prediction has a norm and a linear layer of its own.
        """

        name: Literal["aggregation"] = "aggregation"
        early: int = Field(8, ge=0, lt=1024)
        last: int = Field(11, ge=0, lt=1024)
        num_blocks: int = Field(2, gt=0, le=1024)
        shared: bool = True

        @model_validator(mode="after")
        def _ordered(self) -> Aggregation.Config:
            if self.early > self.last:
                raise ValueError(f"early {self.early} comes after last {self.last}; lower early")
            return self

        @property
        def needs_dense(self) -> bool:
            return True

        @property
        def needs_class(self) -> bool:
            return True

        @property
        def reads_asked(self) -> bool:
            return self.early != self.last

        @property
        def taps(self) -> tuple[Tap, ...]:
            return tuple(dict.fromkeys((Tap(self.early), Tap(self.last))))

        @property
        def label(self) -> str:
            return "FC"

    def __init__(self, config: Aggregation.Config, student: Student, out_dim: int) -> None:
        """ValueError for a student without the parts this head reads or copies, or if `last` is not its last block."""
        super().__init__()
        _check(config, student)
        self.config = config
        self.student: list[Any] = [student]  # in a list: the objective owns it, this head only reads two of its parts
        self.proj = nn.Linear(student.dim, out_dim)
        self.norm = None if config.shared else nn.LayerNorm(student.dim, eps=student.config.eps)
        self.branch = None if config.shared else nn.Linear(student.dim, out_dim)
        init_truncated(self)
        like = student.config
        relative = student.geometry.grid, like.num_prefix, like.num_heads
        own = config.num_blocks * (like.relative_positions == "per_block")
        self.block_bias = nn.ModuleList(RelativePositionBias(*relative) for _ in range(own))
        self.blocks = nn.ModuleList(_block(number, config, like) for number in range(config.num_blocks))

    def forward(self, encoded: Encoded, query: Query) -> tuple[Tensor, Tensor]:
        """-> two predictions (B, M, out_dim); (B, 1, out_dim) from the class tokens for the image."""
        second = self.aggregate(encoded, query.index)
        norm, linear = self.norm or self.student[0].norm, self.branch or self.proj
        return self.proj(encoded.asked(query)), linear(norm(second.asked(query)))

    def aggregate(self, encoded: Encoded, asked: Tensor | None = None) -> Encoded:
        """y, without a final norm; with asked (B, M) the last block answers for these positions and the prefix alone."""
        taps, num_prefix = encoded.taps, encoded.prefix.shape[1]
        y = torch.cat([taps[Tap(self.config.last)][:, :num_prefix], taps[Tap(self.config.early)][:, num_prefix:]], 1)
        shared = self.student[0].shared_bias
        bias = None if shared is None else shared()
        rows = None if asked is None else sequence_rows(asked, num_prefix)
        for number, block in enumerate(self.blocks, 1):
            own = self.block_bias[number - 1]() if self.block_bias else bias
            y, _ = block(y, own, rows if number == len(self.blocks) else None)
        return Encoded(y[:, num_prefix:], y[:, :num_prefix], encoded.grid, asked, normed=False)


def _block(number: int, config: Aggregation.Config, like: Any) -> Block:
    """B_(number + 1), as the student's block of that place after the early one would be."""
    place = config.early + 1 + number
    rate = like.drop_path * place / (max(like.depth, config.early + 1 + config.num_blocks) - 1)
    sizes = like.dim, like.num_heads, like.mlp_ratio, like.qkv_bias, like.layer_scale
    block = Block(*sizes, rate, like.attention_dropout, like.eps)
    for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
        weight.data.div_(math.sqrt(2 * (place + 1)))
    return block


def _check(config: Aggregation.Config, student: Student) -> None:
    like, problem = student.config, ""
    if not (hasattr(student, "shared_bias") and hasattr(student, "norm")):
        problem = f"it adds blocks like those of student vit, not of {like.name!r}"
    elif not like.dense:
        problem = "it attends to all patches, but the student drops hidden ones; use masking: replace"
    elif not like.num_prefix:
        problem = "it reads the class token, but the student has none"
    elif config.last != like.num_blocks - 1:
        problem = f"the student's last block is {like.num_blocks - 1}; set head.last={like.num_blocks - 1}"
    if problem:
        raise ValueError(f"head aggregation: {problem}")
