"""The plain vision transformer, the paper's analytical anchor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ..axes import Student
from ..layers.blocks import Block, QkvBias, init_truncated, init_xavier, truncated_normal
from ..layers.patches import check_patches, check_pixels, pair
from ..layers.positions import RelativePositionBias, resize_relative, sincos_2d
from ..types import Encoded, Geometry, Mask, Size, Tap, View, gather, sequence_rows

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES: Mapping[str, Mapping[str, int]] = {
    "micro": {"dim": 128, "depth": 6, "num_heads": 4},
    "tiny": {"dim": 192, "depth": 12, "num_heads": 3},
    "small": {"dim": 384, "depth": 12, "num_heads": 6},
    "base": {"dim": 768, "depth": 12, "num_heads": 12},
    "large": {"dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"dim": 1280, "depth": 32, "num_heads": 16},
}
"""Widths, depths and heads by name; base, large and huge are those of the paper's Table 11."""


class ViT(Student):
    """Pre-norm ViT that hides patches by a mask token (replace) or by leaving them out (drop)."""

    class Config(Student.Config):
        """size names dim, depth and num_heads together (each can still be given).

        masking: "replace" puts one learned token in place of hidden patch embeddings, "drop" keeps visible ones only,
        "none" cannot hide.  positions: absolute code, of which the class token's is zero for "sincos" (column first, MAE)
        and "sincos_row" (row first, SIM and BootMAE). Learned codes are resampled for images of another size, bicubic.
        relative_positions: attention bias, one table for all blocks (BEiT) or one a block.
        layer_scale: start of the residual scales, None for none.  qkv_bias "qv": no bias on keys.
        num_registers: prefix tokens beside the class token.  mean, std: pixel statistics of [0, 1] RGB.
        init: "xavier" (MAE) or "truncated" (BEiT: normal cut at one deviation, residual outputs over sqrt(2 l)).
        """

        name: Literal["vit"] = "vit"
        image_size: int | Size = 224
        patch_size: int | Size = 16
        channels: int = Field(3, gt=0, le=1024)
        dim: int = Field(768, gt=0, le=2**16)
        depth: int = Field(12, gt=0, le=1024)
        num_heads: int = Field(12, gt=0, le=2**16)
        mlp_ratio: float = Field(4.0, gt=0, le=64)
        masking: Literal["replace", "drop", "none"] = "replace"
        positions: Literal["learned", "sincos", "sincos_row", "none"] = "learned"
        relative_positions: Literal["none", "shared", "per_block"] = "none"
        layer_scale: float | None = Field(None, gt=0)
        qkv_bias: QkvBias = "qkv"
        class_token: bool = True
        num_registers: int = Field(0, ge=0, le=1024)
        final_norm: bool = True
        eps: float = Field(1e-6, gt=0)
        drop_path: float = Field(0.0, ge=0, lt=1)
        attention_dropout: float = Field(0.0, ge=0, lt=1)
        init: Literal["xavier", "truncated"] = "truncated"
        mean: tuple[float, ...] = IMAGENET_MEAN
        std: tuple[float, ...] = IMAGENET_STD

        @model_validator(mode="before")
        @classmethod
        def _named_size(cls, data: Any) -> Any:
            if not isinstance(data, Mapping) or "size" not in data:
                return data
            size = data["size"]
            if size not in SIZES:
                raise ValueError(f"unknown size {size!r}; choose one of {', '.join(SIZES)}")
            return {**SIZES[size], **{key: value for key, value in data.items() if key != "size"}}

        @model_validator(mode="after")
        def _divides(self) -> ViT.Config:
            check_patches(self.image_size, self.patch_size)
            check_pixels(self.channels, self.mean, self.std)
            if self.dim % self.num_heads:
                raise ValueError(f"dim {self.dim} does not divide into num_heads {self.num_heads}")
            if self.positions.startswith("sincos") and self.dim % 4:
                raise ValueError(f"positions: {self.positions} needs dim divisible by 4, not {self.dim}")
            return self

        @property
        def geometry(self) -> Geometry:
            image, patch = pair(self.image_size), pair(self.patch_size)
            return Geometry(image, (image[0] // patch[0], image[1] // patch[1]), self.dim, self.channels)

        @property
        def dense(self) -> bool:
            return self.masking != "drop"

        @property
        def can_hide(self) -> bool:
            return self.masking != "none"

        @property
        def can_substitute(self) -> bool:
            return self.masking == "replace"

        @property
        def can_resize(self) -> bool:
            return self.relative_positions == "none"

        @property
        def can_narrow(self) -> bool:
            """A subclass with a forward of its own says so itself."""
            return self.dense and self.component.forward is ViT.forward

        @property
        def num_blocks(self) -> int:
            return self.depth

        @property
        def on_labels(self) -> Mapping[str, Any]:
            """A shared table of relative positions becomes one for each block (BEiT)."""
            return {"relative_positions": "per_block"} if self.relative_positions == "shared" else {}

        @property
        def num_prefix(self) -> int:
            return int(self.class_token) + self.num_registers

        @property
        def label(self) -> str:
            return "ViT"

    mean: Tensor
    std: Tensor
    pos_embed: Tensor | None

    def __init__(self, config: ViT.Config) -> None:
        super().__init__()
        self.config, self.geometry, self.dim = config, config.geometry, config.dim
        self.num_prefix = config.num_prefix
        dim, num_tokens = config.dim, self.geometry.num_tokens
        self.register_buffer("mean", torch.tensor(config.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(-1, 1, 1), persistent=False)
        patch = pair(config.patch_size)
        self.patch_embed = PatchEmbed(self.geometry.image, patch, config.channels, dim, strict_img_size=False)
        self.prefix = nn.Parameter(torch.zeros(1, self.num_prefix, dim)) if self.num_prefix else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.masking == "replace" else None
        self._add_positions(num_tokens)
        relative = (self.geometry.grid, self.num_prefix, config.num_heads)
        shared, per_block = config.relative_positions == "shared", config.relative_positions == "per_block"
        self.shared_bias = RelativePositionBias(*relative) if shared else None
        self.block_bias = nn.ModuleList(RelativePositionBias(*relative) for _ in range(config.depth * per_block))
        self.blocks = nn.ModuleList(self._block(number) for number in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=config.eps) if config.final_norm else nn.Identity()
        self._init()

    def _add_positions(self, num_tokens: int) -> None:
        dim, kind = self.dim, self.config.positions
        if kind.startswith("sincos"):
            self.register_buffer("pos_embed", self._code(self.geometry.grid), persistent=False)
        else:
            learned = nn.Parameter(torch.zeros(1, self.num_prefix + num_tokens, dim)) if kind == "learned" else None
            self.register_parameter("pos_embed", learned)

    def _code(self, grid: Size) -> Tensor:
        """The fixed code (1, P + N, D) of a grid, zero for prefix tokens."""
        code = sincos_2d(grid, self.dim, "column" if self.config.positions == "sincos" else "row")
        return torch.cat([torch.zeros(self.num_prefix, self.dim), code]).unsqueeze(0)

    def _positions(self, grid: Size) -> Tensor | None:
        """The code (1, P + N, D) for images of `grid` tokens. ValueError if the student has none for that size."""
        if self.pos_embed is None or grid == self.geometry.grid:
            return self.pos_embed
        if self.config.positions != "learned":
            name = f"pos_embed_{grid[0]}x{grid[1]}"
            if not hasattr(self, name):  # made once: the host would wait for the device in every step
                self.register_buffer(name, self._code(grid).to(self.pos_embed.device), persistent=False)
            return getattr(self, name)  # type: ignore[no-any-return]
        prefix, patches = self.pos_embed[:, : self.num_prefix], self.pos_embed[:, self.num_prefix :]
        plane = patches.unflatten(1, self.geometry.grid).permute(0, 3, 1, 2)
        plane = F.interpolate(plane, grid, mode="bicubic")
        return torch.cat([prefix, plane.flatten(2).transpose(1, 2)], 1)

    def _block(self, number: int) -> Block:
        config = self.config
        rate = config.drop_path * number / max(config.depth - 1, 1)
        return Block(
            config.dim,
            config.num_heads,
            config.mlp_ratio,
            config.qkv_bias,
            config.layer_scale,
            rate,
            config.attention_dropout,
            config.eps,
        )

    def _init(self) -> None:
        tokens = [t for t in (self.prefix, self.mask_token) if t is not None]
        if self.config.init == "xavier":
            init_xavier(self)
            for token in tokens:
                nn.init.normal_(token, std=0.02)
        else:
            init_truncated(self)
            for token in tokens:
                truncated_normal(token)
            for number, block in enumerate(self.blocks, 1):
                assert isinstance(block, Block)
                for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
                    weight.data.div_(math.sqrt(2 * number))
        if self.config.positions == "learned" and self.pos_embed is not None:
            truncated_normal(self.pos_embed)

    def forward(
        self, view: View, mask: Mask | None = None, taps: Sequence[Tap] = (), asked: Tensor | None = None
    ) -> Encoded:
        """view.image (B, C, H, W) of the configured size, or another if it can resize, -> Encoded.

        With `drop` its index is mask.visible_index. With asked (B, M) the last block asks and answers for these alone.
        """
        tokens, kept = self.embed(view, mask)
        sequence = None
        if kept is not None and self.config.relative_positions != "none":
            sequence = sequence_rows(kept, self.num_prefix)
        bias = self.shared_bias(sequence) if self.shared_bias is not None else None
        rows = None if asked is None else sequence_rows(asked, self.num_prefix)
        found = {}
        for number, block in enumerate(self.blocks):
            own = self.block_bias[number](sequence) if self.block_bias else bias
            tokens, branch = block(tokens, own, rows if number == len(self.blocks) - 1 else None)
            found.update({tap: tokens if tap.point == "block" else branch for tap in taps if tap.block == number})
        tokens = self.norm(tokens)
        prefix, tokens = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        grid = self._grid(view)
        index = kept if asked is None else asked
        return Encoded(tokens, prefix, grid, index, found, view.box, view.flip, normed=self.config.final_norm)

    def embed(self, view: View, mask: Mask | None = None) -> tuple[Tensor, Tensor | None]:
        """The sequence (B, P + L, D) that enters the first block, and the kept positions (B, L) if patches were dropped."""
        positions = self._positions(self._grid(view))
        pixels = (view.pixels() - self.mean) / self.std
        tokens = self.patch_embed(pixels.to(self.patch_embed.proj.weight.dtype))
        if mask is not None and self.mask_token is not None:
            masked = mask.hidden if mask.source is None else mask.source < 0
            shown = tokens if mask.source is None else gather(tokens, mask.source.clamp_min(0))
            tokens = torch.where(masked.unsqueeze(-1), self.mask_token.to(tokens.dtype), shown)
        if positions is not None:
            tokens = tokens + positions[:, self.num_prefix :]
        kept = mask.visible_index if mask is not None and not self.config.dense else None
        if kept is not None:
            tokens = gather(tokens, kept)
        if self.prefix is not None:
            prefix = self.prefix if positions is None else self.prefix + positions[:, : self.num_prefix]
            tokens = torch.cat([prefix.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], 1)
        return tokens, kept

    def state_for(self, twin: Student) -> Mapping[str, Tensor]:
        """Position codes and tables resampled; a shared table once for each block; what hides patches left behind."""
        assert isinstance(twin, ViT)
        state, old, new = dict(self.state_dict()), self.geometry.grid, twin.geometry.grid
        if twin.mask_token is None:
            state.pop("mask_token", None)
        if self.config.positions == "learned" and (code := self._positions(new)) is not None:
            state["pos_embed"] = code
        tables = [name for name in state if name.endswith("bias.table") or name.startswith("block_bias.")]
        for name in tables:
            state[name] = resize_relative(state[name], old, new)
        if self.shared_bias is not None and twin.block_bias:
            table = state.pop("shared_bias.table")
            state |= {f"block_bias.{number}.table": table for number in range(len(twin.block_bias))}
        return state

    def _grid(self, view: View) -> Size:
        (height, width), patch = view.image.shape[-2:], self.geometry.patch
        grid = height // patch[0], width // patch[1]
        if grid != self.geometry.grid and not self.config.can_resize:
            raise ValueError(
                f"student vit has relative positions for images of {self.geometry.image}, not {height}x{width}"
            )
        return grid

    def layer_of(self, parameter: str) -> int:
        part, _, rest = parameter.partition(".")
        if part in ("patch_embed", "prefix", "mask_token", "pos_embed"):
            return 0
        if part in ("blocks", "block_bias"):
            return int(rest.partition(".")[0]) + 1
        return len(self.blocks) + 1
