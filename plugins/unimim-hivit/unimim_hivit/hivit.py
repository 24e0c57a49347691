"""HiViT: a pyramid whose early stages never look beyond a patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from unimim import Encoded, Geometry, Mask, Student, Tap, View
from unimim.layers import Block, PatchMerge, check_patches, check_pixels, gather, pair, sincos_2d, to_units

from .layers import MlpBlock, RelativeAttention

Depth = Annotated[int, Field(gt=0, le=1024)]


class HiViT(Student):
    """S(I) = LN([x1, x2, ViT(x3 + positions)]) of the visible tokens, x1, x2, x3 three scales of what lies under a token.

    x1: MLP blocks on 4 x 4 tokens of width dim / 4, x2: on 2 x 2 tokens of dim / 2 after a merge, x3: one token of dim after
    another; their concatenation is 7 dim wide, x1 and x2 flattened in raster order. Hidden units are left out behind the
    patch embedding, and nothing crosses a unit before the main stage. There is no class token. Tokens being wider than any
    block, a Tap can name none of them.

    Positions are a learned table that starts at the sin-cos code, column first: the official code means to freeze it, but
    its requires_grad=False falls on the tensor inside the parameter, and released weights were trained with it.

    Follows Zhang et al., 2022, HiViT, and zhangxiaosong18/hivit @ 2718339, self_supervised/models/models_hivit.py and
    models_hivit_mae.py (hifeat). Images need not be square. The whole image (no mask) takes the same path as a masked one,
    while the official fine-tuning reads the main stage alone.
    """

    class Config(Student.Config):
        """dim, depth, num_heads, mlp_ratio: of the main stage.  stem_depths: MLP blocks of the two early stages, twice the
        official depths, which count pairs.  patch_size: pixels of a token of the main stage.

        relative_positions: attention bias, one table a block (the official fine-tuning) or none (the pre-training).
        masking: "drop", or "none" for whole images only.  drop_path: of the last block, rising linearly from zero over all.
        mean, std: pixel statistics of [0, 1] RGB.
        """

        name: Literal["hivit"] = "hivit"
        image_size: int | tuple[int, int] = 224
        patch_size: int = Field(16, gt=0, le=1024)
        channels: int = Field(3, gt=0, le=1024)
        stem_depths: tuple[Depth, Depth] = (4, 4)
        stem_mlp_ratio: float = Field(3.0, gt=0, le=64)
        dim: int = Field(512, gt=0, le=2**14)
        depth: Depth = 20
        num_heads: int = Field(8, gt=0, le=2**14)
        mlp_ratio: float = Field(4.0, gt=0, le=64)
        relative_positions: Literal["none", "per_block"] = "none"
        masking: Literal["drop", "none"] = "drop"
        eps: float = Field(1e-6, gt=0)
        drop_path: float = Field(0.0, ge=0, lt=1)
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)

        @model_validator(mode="after")
        def _divides(self) -> HiViT.Config:
            patch = self.patch_size
            if patch % 4:
                raise ValueError(
                    f"patch_size {patch}: a patch is 4 x 4 tokens of the first stage; nearest {max(4, round(patch / 4) * 4)}"
                )
            check_patches(self.image_size, self.patch_size)
            check_pixels(self.channels, self.mean, self.std)
            if self.dim % self.num_heads or self.dim % 4:
                raise ValueError(
                    f"dim {self.dim} must divide into num_heads {self.num_heads} and into 4 (the first stage is dim / 4 wide)"
                )
            return self

        @property
        def sides(self) -> tuple[int, int]:
            return pair(self.image_size)

        @property
        def geometry(self) -> Geometry:
            height, width = self.sides
            grid = height // self.patch_size, width // self.patch_size
            return Geometry(self.sides, grid, 7 * self.dim, self.channels)

        @property
        def dense(self) -> bool:
            return self.masking != "drop"

        @property
        def can_hide(self) -> bool:
            return self.masking != "none"

        @property
        def num_layers(self) -> int:
            return sum(self.stem_depths) + self.depth

        @property
        def label(self) -> str:
            return "HiViT"

    mean: Tensor
    std: Tensor

    def __init__(self, config: HiViT.Config) -> None:
        super().__init__()
        self.config, self.geometry, self.dim = config, config.geometry, config.geometry.dim
        grid, width, step = self.geometry.grid, config.dim // 4, config.patch_size // 4
        self.register_buffer("mean", torch.tensor(config.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(-1, 1, 1), persistent=False)
        self.patch_embed = nn.Conv2d(config.channels, width, step, stride=step)
        self.patch_norm = nn.LayerNorm(width, eps=config.eps)
        self.pos_embed = nn.Parameter(sincos_2d(grid, config.dim).unsqueeze(0))
        last = max(config.num_layers - 1, 1)
        rates = iter([config.drop_path * number / last for number in range(config.num_layers)])
        # One list, merges among the blocks, because official tensors are numbered so.
        self.blocks = nn.ModuleList()
        for stage, depth in enumerate(config.stem_depths):
            own = width << stage
            self.blocks.extend(MlpBlock(own, config.stem_mlp_ratio, next(rates), config.eps) for _ in range(depth))
            self.blocks.append(PatchMerge(own, 4 >> stage, config.eps))
        self.blocks.extend(self._block(rate) for rate in rates)
        self.norm = nn.LayerNorm(self.dim, eps=config.eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _block(self, rate: float) -> Block:
        config = self.config
        relative = config.relative_positions == "per_block"
        attention = RelativeAttention(config.dim, config.num_heads, self.geometry.grid) if relative else None
        return Block(
            config.dim, config.num_heads, config.mlp_ratio, drop_path=rate, eps=config.eps, attention=attention
        )

    def forward(self, view: View, mask: Mask | None = None, taps: Sequence[Tap] = ()) -> Encoded:
        """view.image (B, C, H, W) of the configured size -> Encoded; if masked, its index is mask.visible_index."""
        kept = mask.visible_index if mask is not None and not self.config.dense else None
        x = to_units(self.patch_embed((view.pixels() - self.mean) / self.std).permute(0, 2, 3, 1), self.geometry.grid)
        if kept is not None:
            x = gather(x, kept)
        batch, length = x.shape[:2]
        x = self.patch_norm(x).flatten(1, 2)
        scales = []
        for block in self.blocks[: -self.config.depth]:
            if isinstance(block, PatchMerge):
                scales.append(x.reshape(batch, length, -1))
            x = block(x)
        x = x + (self.pos_embed if kept is None else F.embedding(kept, self.pos_embed[0]))
        context = kept if self.config.relative_positions == "per_block" else None
        for block in self.blocks[-self.config.depth :]:
            x, _ = block(x, context)
        tokens = self.norm(torch.cat([*scales, x], -1))
        return Encoded(tokens, tokens[:, :0], self.geometry.grid, kept, {}, view.box, view.flip)

    def layer_of(self, parameter: str) -> int:
        """As util/lr_decay.py of the official code: MLP blocks count as main blocks do, a merge belongs to the one before."""
        part, _, rest = parameter.partition(".")
        if part in ("patch_embed", "patch_norm", "pos_embed"):
            return 0
        if part == "blocks":
            number = int(rest.partition(".")[0])
            return sum(not isinstance(block, PatchMerge) for block in self.blocks[: number + 1])
        return int(self.config.num_layers) + 1
