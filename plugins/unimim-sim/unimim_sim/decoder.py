"""SIM's projector and predictor as the head."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimim import Encoded, Head, Query, Student
from unimim.layers import BatchNorm, Block, gather, init_xavier, sincos_2d

from .positions import relative_code


class Decoder(Head):
    """H(z) = W predictor([g(z) + positions of visible patches; m + V r]) + b, g(z) = projector(E z), read at m's places.

    One mask token m stands for every patch of the target's view, which is another crop: r (2 D) says where that patch lies in
    the view the student saw (`relative_code`). Projector and predictor are transformer blocks whose norms are BatchNorms over
    all tokens of all images and processes; sin-cos positions are row first, and zero for the class token, which takes part.
    What a momentum copy of the head answers is g alone: the target. Follows OpenGVLab/Siamese-Image-Modeling @ bbdec30,
    models_sim.py. Deviation: W is applied where it is asked for.
    """

    class Config(Head.Config):
        """dim: D.  projector_depth, predictor_depth, num_heads, mlp_ratio: of the blocks.

        A self-teacher that reads this head has `head_dim` equal to dim.
        """

        name: Literal["sim_decoder"] = "sim_decoder"
        dim: int = Field(768, gt=0, le=2**16, multiple_of=4)
        projector_depth: int = Field(2, ge=0, le=1024)
        predictor_depth: int = Field(4, ge=0, le=1024)
        num_heads: int = Field(16, gt=0, le=2**16)
        mlp_ratio: float = Field(4.0, gt=0, le=64)

        @model_validator(mode="after")
        def _divides(self) -> Decoder.Config:
            if self.dim % self.num_heads:
                raise ValueError(f"dim {self.dim} does not divide into num_heads {self.num_heads}")
            return self

        @property
        def needs_class(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "Decoder"

    student_only = ("mask_token", "relative", "predictor", "proj")
    positions: Tensor
    omega: Tensor

    def __init__(self, config: Decoder.Config, student: Student, out_dim: int) -> None:
        super().__init__()
        dim, self.out_dim, self.grid = config.dim, out_dim, student.geometry.grid
        self.embed = nn.Linear(student.geometry.masked_dim, dim)
        self.projector = nn.ModuleList(_block(config) for _ in range(config.projector_depth))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.relative = nn.Linear(2 * dim, dim)
        self.predictor = nn.ModuleList(_block(config) for _ in range(config.predictor_depth))
        self.proj = nn.Linear(dim, out_dim)
        self.register_buffer("positions", sincos_2d(self.grid, dim, "row"), persistent=False)
        exponent = torch.arange(dim // 4, dtype=torch.float64) / (dim // 4)
        self.register_buffer("omega", (10000.0**-exponent).float(), persistent=False)
        init_xavier(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Encoded, query: Query) -> Tensor:
        """-> (B, M, out_dim); (B, 1, out_dim) from the class token for the image.

        ValueError if the box or flip of either view is not known.
        """
        prefix, tokens = self.project(encoded)
        tokens = tokens + (self.positions if encoded.index is None else self.positions[encoded.index])
        asked = self.mask_token + self.relative(self.code(encoded, query))
        x = torch.cat([prefix, tokens, asked.to(tokens.dtype)], 1)
        for block in self.predictor:
            x, _ = block(x)
        if query.index is None:
            return self.proj(x[:, :1])  # type: ignore[no-any-return]
        wanted = gather(x, query.index + prefix.shape[1] + tokens.shape[1])
        if query.include_class:
            wanted = torch.cat([x[:, :1], wanted], 1)
        return self.proj(wanted)  # type: ignore[no-any-return]

    def target(self, encoded: Encoded, query: Query) -> Tensor:
        """g(z): (B, M, D), or (B, 1, D) of the class token. ValueError if the target is promised to have another width."""
        prefix, tokens = self.project(encoded)
        if tokens.shape[-1] != self.out_dim:
            raise ValueError(
                f"head sim_decoder answers {tokens.shape[-1]} wide; set teacher.head_dim={tokens.shape[-1]}"
            )
        return replace(encoded, prefix=prefix, tokens=tokens).asked(query)

    def project(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """g(z): prefix (B, P, D) and patches (B, L, D)."""
        x = self.embed(torch.cat([encoded.prefix, encoded.tokens], 1))
        for block in self.projector:
            x, _ = block(x)
        num_prefix = encoded.prefix.shape[1]
        return x[:, :num_prefix], x[:, num_prefix:]

    def code(self, encoded: Encoded, query: Query) -> Tensor:
        """r (B, N, 2 D) of every patch of the target's view."""
        if encoded.box is None or encoded.flip is None or query.box is None or query.flip is None:
            raise ValueError(
                "head sim_decoder places the patches of one crop in another; give every View its box and flip"
            )
        return relative_code(self.grid, (encoded.box, encoded.flip), (query.box, query.flip), self.omega)


def _block(config: Decoder.Config) -> Block:
    """A block with BatchNorms in place of its LayerNorms."""
    block = Block(config.dim, config.num_heads, config.mlp_ratio)
    for name in ("norm1", "norm2"):
        block.register_module(name, BatchNorm(config.dim, world=True))
    return block
