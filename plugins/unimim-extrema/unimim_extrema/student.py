"""ExtreMA's student: a ViT without a class token, and a class token that reads its patches at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from timm.layers import LayerScale, Mlp
from torch import Tensor, nn

from unimim import Encoded, Geometry, Mask, Student, Tap, View, plugins
from unimim.layers import attend, check_patches, check_pixels, init_xavier

TRUNK = ("image_size", "patch_size", "channels", "dim", "depth", "num_heads", "mlp_ratio", "eps", "drop_path")


class ExtreMA(Student):
    """S(I_masked) = LN([C(c, z); z]), z = ViT(visible patches): c a learned class token that enters after the last block.

    The ViT is the core's, pre-norm, with fixed sin-cos positions (column first), without class token and last norm; hidden
    patches are left out. C is `class_depth` blocks of class attention (`ClassBlock`), in which c alone changes. One LN for
    both. Follows microsoft/ExtreMA @ bf30b64, vits.py, start values included: matrices xavier-uniform, c normal (0.02).
    Deviation: the patch embedding runs once for every mask fold, officially once for all of them; the README says what it
    costs.
    """

    class Config(Student.Config):
        """depth, class_depth: blocks on patches, and blocks of the class token.  layer_scale: start of the residual scales
        of the latter; the former have none.  drop_path: of the former only, rising from 0 to this.
        mean, std: pixel statistics of [0, 1] RGB.
        """

        name: Literal["extrema"] = "extrema"
        image_size: int | tuple[int, int] = 224
        patch_size: int | tuple[int, int] = 16
        channels: int = Field(3, gt=0, le=1024)
        dim: int = Field(768, gt=0, le=2**16, multiple_of=4)
        depth: int = Field(12, gt=0, le=1024)
        num_heads: int = Field(12, gt=0, le=2**16)
        mlp_ratio: float = Field(4.0, gt=0, le=64)
        class_depth: int = Field(2, gt=0, le=64)
        layer_scale: float = Field(0.1, gt=0)
        eps: float = Field(1e-6, gt=0)
        drop_path: float = Field(0.0, ge=0, lt=1)
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)

        @model_validator(mode="after")
        def _divides(self) -> ExtreMA.Config:
            check_patches(self.image_size, self.patch_size)
            check_pixels(self.channels, self.mean, self.std)
            if self.dim % self.num_heads:
                raise ValueError(f"dim {self.dim} does not divide into num_heads {self.num_heads}")
            return self

        @property
        def trunk(self) -> Any:
            """Config of the ViT on patches."""
            shared = {name: getattr(self, name) for name in (*TRUNK, "mean", "std")}
            fixed = {"masking": "drop", "positions": "sincos", "class_token": False, "final_norm": False}
            return plugins()["students"]["vit"].Config(init="xavier", **fixed, **shared)

        @property
        def geometry(self) -> Geometry:
            geometry: Geometry = self.trunk.geometry
            return geometry

        @property
        def dense(self) -> bool:
            return False

        @property
        def num_blocks(self) -> int:
            return self.depth

        @property
        def num_prefix(self) -> int:
            return 1

        @property
        def label(self) -> str:
            return "ViT"

    def __init__(self, config: ExtreMA.Config) -> None:
        super().__init__()
        self.config, self.geometry, self.dim = config, config.geometry, config.dim
        self.trunk = config.trunk.build()
        self.prefix = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.class_blocks = nn.ModuleList(ClassBlock(config) for _ in range(config.class_depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        init_xavier(self.class_blocks)
        nn.init.normal_(self.prefix, std=0.02)

    def forward(self, view: View, mask: Mask | None = None, taps: Sequence[Tap] = ()) -> Encoded:
        """view.image (B, C, H, W) of the configured size -> tokens (B, L, D) of the visible patches, or of all without a
        mask, and the class token as prefix (B, 1, D). Taps are of the ViT's blocks, which c waits for as it is: before their
        patches they have c, or zeros in an MLP's branch.
        """
        seen: Encoded = self.trunk(view, mask, taps)
        start = self.prefix.expand(len(seen.tokens), -1, -1).to(seen.tokens.dtype)
        found = {
            tap: torch.cat([start if tap.point == "block" else torch.zeros_like(start), value], 1)
            for tap, value in seen.taps.items()
        }
        token = start
        for block in self.class_blocks:
            token = block(token, seen.tokens)
        return replace(seen, tokens=self.norm(seen.tokens), prefix=self.norm(token), taps=found, normed=True)

    def layer_of(self, parameter: str) -> int:
        part, _, rest = parameter.partition(".")
        layer: int = self.trunk.layer_of(rest) if part == "trunk" else self.config.depth + 1
        return layer


class ClassAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v from the first token to all, (B, 1 + L, D) -> (B, 1, D), then a projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q(x[:, :1]), self.k(x), self.v(x))
        )
        mixed = attend(q, k, v, None, 0.0)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class ClassBlock(nn.Module):
    """c + s1 * Attention(LN([c; z])), then c + s2 * MLP(LN(c)), with layer scale s: the patches z stay as they are."""

    def __init__(self, config: ExtreMA.Config) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=config.eps)
        self.attn = ClassAttention(dim, config.num_heads)
        self.ls1 = LayerScale(dim, config.layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=config.eps)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.ls2 = LayerScale(dim, config.layer_scale)

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:
        """token (B, 1, D), patches (B, L, D) -> (B, 1, D)."""
        token = token + self.ls1(self.attn(self.norm1(torch.cat([token, patches], 1))))
        return token + self.ls2(self.mlp(self.norm2(token)))  # type: ignore[no-any-return]
