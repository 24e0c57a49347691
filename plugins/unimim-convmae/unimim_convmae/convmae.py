"""ConvMAE's student: two stages of masked convolutions before a vision transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimim import Encoded, Geometry, Mask, Student, Tap, View
from unimim.layers import Block, check_patches, check_pixels, gather, init_xavier, pair, sincos_2d, to_units

from .layers import ConvBlock, PatchEmbed, UnitConv

Width = Annotated[int, Field(gt=0, le=2**14)]
Depth = Annotated[int, Field(gt=0, le=1024)]
Ratio = Annotated[float, Field(gt=0, le=64)]


class ConvMAE(Student):
    """S(I) = LN(z + F1 x1 + F2 x2), with x1 = conv stage 1, x2 = conv stage 2, z = ViT(W x3 + positions) over visible tokens.

    Strides are patch_size / 4, 2 and 2, so that a token of the last grid is a unit of 4 x 4 tokens of the first stage and of
    2 x 2 of the second; hidden units are gates in the first two and left out of the third. F1 and F2 map what lies under a
    token to its width. Positions are fixed sin-cos codes, column first; there is no class token.

    Follows Gao et al., 2022, ConvMAE, and Alpha-VL/ConvMAE @ 4c97b4c, models_convmae.py and vision_transformer.py. What is
    visible is the same; of what is hidden nothing is computed (see `ConvBlock`), and images need not be 224 pixels square.
    The whole image (no mask) takes the same path as a masked one, while the official fine-tuning drops F1 and F2.
    """

    class Config(Student.Config):
        """dim, depth, num_heads, mlp_ratio: of the transformer, whose blocks a Tap can name.

        conv_dims, conv_depths, conv_mlp_ratios: of the two convolution stages.  patch_size: pixels of a token of the last
        grid.  masking: "drop", or "none" for whole images only.  eps: of the transformer's norms; those of the convolution
        stages have 1e-5.  drop_path: of the last block, rising linearly from zero over all three stages.
        mean, std: pixel statistics of [0, 1] RGB.
        """

        name: Literal["convmae"] = "convmae"
        image_size: int | tuple[int, int] = 224
        patch_size: int = Field(16, gt=0, le=1024)
        channels: int = Field(3, gt=0, le=1024)
        conv_dims: tuple[Width, Width] = (256, 384)
        conv_depths: tuple[Depth, Depth] = (2, 2)
        conv_mlp_ratios: tuple[Ratio, Ratio] = (4.0, 4.0)
        dim: Width = 768
        depth: Depth = 11
        num_heads: int = Field(12, gt=0, le=2**14)
        mlp_ratio: Ratio = 4.0
        masking: Literal["drop", "none"] = "drop"
        eps: float = Field(1e-6, gt=0)
        drop_path: float = Field(0.0, ge=0, lt=1)
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)

        @model_validator(mode="after")
        def _divides(self) -> ConvMAE.Config:
            patch = self.patch_size
            if patch % 4:
                raise ValueError(
                    f"patch_size {patch}: the strides are patch_size / 4, 2 and 2; nearest {max(4, round(patch / 4) * 4)}"
                )
            check_patches(self.image_size, self.patch_size)
            check_pixels(self.channels, self.mean, self.std)
            if self.dim % self.num_heads or self.dim % 4:
                raise ValueError(
                    f"dim {self.dim} must divide into num_heads {self.num_heads} and into 4 (sin-cos positions)"
                )
            return self

        @property
        def sides(self) -> tuple[int, int]:
            return pair(self.image_size)

        @property
        def geometry(self) -> Geometry:
            height, width = self.sides
            return Geometry(self.sides, (height // self.patch_size, width // self.patch_size), self.dim, self.channels)

        @property
        def dense(self) -> bool:
            return self.masking != "drop"

        @property
        def can_hide(self) -> bool:
            return self.masking != "none"

        @property
        def num_blocks(self) -> int:
            return self.depth

        @property
        def label(self) -> str:
            return "Hybrid ViT"

    mean: Tensor
    std: Tensor
    positions: Tensor

    def __init__(self, config: ConvMAE.Config) -> None:
        super().__init__()
        self.config, self.geometry, self.dim = config, config.geometry, config.dim
        grid, (first, second), dim, patch = self.geometry.grid, config.conv_dims, config.dim, config.patch_size
        self.register_buffer("mean", torch.tensor(config.mean), persistent=False)
        self.register_buffer("std", torch.tensor(config.std), persistent=False)
        self.register_buffer("positions", sincos_2d(grid, dim), persistent=False)
        self.embeds = nn.ModuleList(
            [
                PatchEmbed(config.channels, first, patch // 4, patch),
                PatchEmbed(first, second, 2, 4),
                PatchEmbed(second, dim, 2, 2),
            ]
        )
        total = sum(config.conv_depths) + config.depth
        rates = iter([config.drop_path * number / max(total - 1, 1) for number in range(total)])
        self.stages = nn.ModuleList()
        for width, depth, ratio, side in zip(
            config.conv_dims, config.conv_depths, config.conv_mlp_ratios, (4, 2), strict=True
        ):
            self.stages.append(nn.ModuleList(ConvBlock(width, ratio, grid, side, next(rates)) for _ in range(depth)))
        self.fusions = nn.ModuleList([UnitConv(first, dim, 4, 4), UnitConv(second, dim, 2, 2)])
        self.proj = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, drop_path=rate, eps=config.eps) for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=config.eps)
        for part in (
            self.embeds[2],
            self.proj,
            self.blocks,
        ):  # the official code leaves the others at torch's start values
            init_xavier(part)

    def forward(self, view: View, mask: Mask | None = None, taps: Sequence[Tap] = ()) -> Encoded:
        """view.image (B, C, H, W) of the configured size -> Encoded; if masked, its index is mask.visible_index."""
        kept = mask.visible_index if mask is not None and not self.config.dense else None
        pixels = (view.pixels().permute(0, 2, 3, 1) - self.mean) / self.std
        x = to_units(pixels, self.geometry.grid)
        if kept is not None:
            x = gather(x, kept)
        early = []
        for number, (blocks, fusion) in enumerate(zip(self.stages, self.fusions, strict=True)):
            x = self.embeds[number](x)
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                x = block(x, kept)
            early.append(fusion(x).squeeze(2))
        x = self.proj(self.embeds[2](x).squeeze(2)) + (self.positions if kept is None else self.positions[kept])
        found = {}
        for number, block in enumerate(self.blocks):
            x, branch = block(x)
            found.update({tap: x if tap.point == "block" else branch for tap in taps if tap.block == number})
        return Encoded(
            self.norm(x + early[0] + early[1]), x[:, :0], self.geometry.grid, kept, found, view.box, view.flip
        )

    def layer_of(self, parameter: str) -> int:
        """As util/lr_decay.py of the official code: 0 for all before the transformer; F1, F2 stand behind its last block."""
        part, _, rest = parameter.partition(".")
        if part in ("embeds", "stages", "proj"):
            return 0
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        return len(self.blocks) + 1
