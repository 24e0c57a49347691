"""CAE's student: an encoder of visible patches, and a regressor that predicts the latents of hidden ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from timm.layers import PatchEmbed
from torch import Tensor, nn

from unimim import Encoded, Geometry, Mask, Student, Tap, View
from unimim.layers import (
    Block,
    check_patches,
    check_pixels,
    init_truncated,
    init_xavier,
    pair,
    sincos_2d,
    truncated_normal,
)

from .regressor import RegressorBlock


class CAE(Student):
    """S(I_masked) = R(P(E([class, visible patches])), positions of hidden patches): latents of what it did not see.

    E is a pre-norm ViT with layer scale, no bias on keys and fixed sin-cos positions, row first; P a linear layer and a norm
    if the regressor has another width than E, else nothing; R `regressor_depth` blocks of cross-attention from one mask
    token a hidden patch to the visible latents (`RegressorBlock`), and a norm. The class token does not enter R. Without a
    mask the answer is E's, of all patches. Follows Atten4Vis/CAE @ a7fd162, models/modeling_cae.py and
    modeling_cae_helper.py, start values included: every linear layer is xavier-uniform (the official switch that should
    spare the encoder is never passed on), the patch convolution and the two tokens are normal, cut at one deviation.
    """

    class Config(Student.Config):
        """regressor_*: width, depth, heads and start of the residual scales of R; mlp_ratio, eps and drop_path are E's.

        where: the positions it answers for under a mask, "hidden" (CAE) or "all" (CAE v2): visible latents first, then
        the predicted ones, which have no last norm.  mean, std: pixel statistics of [0, 1] RGB.
        """

        name: Literal["cae"] = "cae"
        image_size: int | tuple[int, int] = 224
        patch_size: int = Field(16, gt=0, le=2**13)
        channels: int = Field(3, gt=0, le=1024)
        dim: int = Field(768, gt=0, le=2**16, multiple_of=4)
        depth: int = Field(12, gt=0, le=1024)
        num_heads: int = Field(12, gt=0, le=2**16)
        mlp_ratio: float = Field(4.0, gt=0, le=64)
        layer_scale: float = Field(0.1, gt=0)
        regressor_dim: int = Field(768, gt=0, le=2**16, multiple_of=4)
        regressor_depth: int = Field(4, gt=0, le=1024)
        regressor_heads: int = Field(12, gt=0, le=2**16)
        regressor_layer_scale: float = Field(0.1, gt=0)
        where: Literal["hidden", "all"] = "hidden"
        eps: float = Field(1e-6, gt=0)
        drop_path: float = Field(0.0, ge=0, lt=1)
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)

        @model_validator(mode="after")
        def _divides(self) -> CAE.Config:
            check_patches(self.image_size, self.patch_size)
            check_pixels(self.channels, self.mean, self.std)
            for part, heads in (("dim", "num_heads"), ("regressor_dim", "regressor_heads")):
                if getattr(self, part) % getattr(self, heads):
                    raise ValueError(
                        f"{part} {getattr(self, part)} does not divide into {heads} {getattr(self, heads)}"
                    )
            return self

        @property
        def sides(self) -> tuple[int, int]:
            return pair(self.image_size)

        @property
        def geometry(self) -> Geometry:
            grid = self.sides[0] // self.patch_size, self.sides[1] // self.patch_size
            return Geometry(self.sides, grid, self.dim, self.channels, self.regressor_dim)

        @property
        def dense(self) -> bool:
            return False

        @property
        def answers(self) -> Literal["hidden", "all"]:
            return self.where

        @property
        def num_blocks(self) -> int:
            return self.depth

        @property
        def num_prefix(self) -> int:
            return 1

        @property
        def label(self) -> str:
            return "ViT"

    mean: Tensor
    std: Tensor
    pos_embed: Tensor
    regressor_positions: Tensor

    def __init__(self, config: CAE.Config) -> None:
        super().__init__()
        self.config, self.geometry, self.dim = config, config.geometry, config.dim
        grid, dim, width = self.geometry.grid, config.dim, config.regressor_dim
        self.register_buffer("mean", torch.tensor(config.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(-1, 1, 1), persistent=False)
        self.register_buffer("pos_embed", sincos_2d(grid, dim, "row"), persistent=False)
        self.register_buffer("regressor_positions", sincos_2d(grid, width, "row"), persistent=False)
        self.patch_embed = PatchEmbed(self.geometry.image, config.patch_size, config.channels, dim)
        self.prefix = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, "qv", config.layer_scale, rate, eps=config.eps)
            for rate in _ramp(config.drop_path, config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.eps)
        narrowing = (nn.Linear(dim, width), nn.LayerNorm(width, eps=config.eps)) if width != dim else ()
        self.project = nn.Sequential(*narrowing)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        scale = config.regressor_layer_scale
        self.regressor = nn.ModuleList(
            RegressorBlock(width, config.regressor_heads, config.mlp_ratio, scale, rate, config.eps)
            for rate in _ramp(config.drop_path, config.regressor_depth)
        )
        self.regressor_norm = nn.LayerNorm(width, eps=config.eps) if config.where == "hidden" else nn.Identity()
        init_xavier(self)
        init_truncated(self.patch_embed)
        for token in (self.prefix, self.mask_token):
            truncated_normal(token)

    def forward(self, view: View, mask: Mask | None = None, taps: Sequence[Tap] = ()) -> Encoded:
        """view.image (B, C, H, W) of the configured size -> Encoded.

        Without a mask: tokens (B, N, dim), prefix (B, 1, dim). With one: tokens (B, M, regressor_dim) at
        mask.hidden_index, or (B, N, regressor_dim) with where "all", and prefix (B, 1, regressor_dim), E's class token
        through P. Taps are of E's blocks.
        """
        found: dict[Tap, Tensor] = {}
        seen = self.encode(view, None if mask is None else mask.visible_index, taps, found)
        index = None
        if mask is not None:
            seen = self.project(seen)
            tokens, index = self._regress(seen[:, 1:], mask), mask.hidden_index
            if self.config.where == "all":
                tokens = torch.cat([seen[:, 1:], tokens], 1)
                index = torch.cat([mask.visible_index, mask.hidden_index], 1)
        else:
            tokens = seen[:, 1:]
        return Encoded(tokens, seen[:, :1], self.geometry.grid, index, found, view.box, view.flip)

    def encode(
        self, view: View, kept: Tensor | None, taps: Sequence[Tap] = (), found: dict[Tap, Tensor] | None = None
    ) -> Tensor:
        """E of the class token and the patches at kept (B, L), or of all -> (B, 1 + L, dim); `found` takes the taps."""
        x = self.patch_embed((view.pixels() - self.mean) / self.std) + self.pos_embed
        if kept is not None:
            x = x.take_along_dim(kept.unsqueeze(-1), 1)
        x = torch.cat([self.prefix.expand(len(x), -1, -1).to(x.dtype), x], 1)
        for number, block in enumerate(self.blocks):
            x, branch = block(x)
            if found is not None:
                found.update({tap: x if tap.point == "block" else branch for tap in taps if tap.block == number})
        return self.norm(x)  # type: ignore[no-any-return]

    def _regress(self, visible: Tensor, mask: Mask) -> Tensor:
        """visible (B, L, regressor_dim) -> (B, M, regressor_dim) at the hidden positions."""
        hidden, known = self.regressor_positions[mask.hidden_index], self.regressor_positions[mask.visible_index]
        x = self.mask_token.expand(*mask.hidden_index.shape, -1).to(visible.dtype)
        for block in self.regressor:
            x = block(x, visible, hidden, known)
        return self.regressor_norm(x)  # type: ignore[no-any-return]

    def layer_of(self, parameter: str) -> int:
        part, _, rest = parameter.partition(".")
        if part in ("patch_embed", "prefix"):
            return 0
        return int(rest.partition(".")[0]) + 1 if part == "blocks" else len(self.blocks) + 1


def _ramp(last: float, depth: int) -> list[float]:
    """Rates of stochastic depth, from 0 in the first block to `last` in the last."""
    return [last * number / max(depth - 1, 1) for number in range(depth)]
