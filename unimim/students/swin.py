"""The Swin transformer: a pyramid of shifted windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ..axes import Student
from ..layers.blocks import Block, init_xavier
from ..layers.patches import MAX_SIDE, check_pixels, pair
from ..layers.units import PatchMerge, to_units
from ..layers.windows import WindowAttention
from ..types import Encoded, Geometry, Mask, Size, Tap, View, gather

SIZES: Mapping[str, Mapping[str, Any]] = {
    "micro": {"dim": 32, "depths": (2, 2, 2), "num_heads": (1, 2, 4)},
    "tiny": {"dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}
"""Width of the first stage, and blocks and heads of each, by name; those of Liu et al., 2021, but for micro."""


class Swin(Student):
    """Swin with masks on the grid of its last stage, so that a hidden token is a whole unit of every finer stage.

    masking "replace": one learned token in place of all finer patches of a hidden unit, after the patch norm, as SimMIM does
    (microsoft/SimMIM @ d3e29bc, models/simmim.py). "drop": hidden units are left out from the patch embedding on, as
    GreenMIM does (LayneH/GreenMIM @ b981012, modeling/); every image keeps its own units. "none" cannot hide.
    The blocks of the last stage are those a Tap can name.
    """

    class Config(Student.Config):
        """size names dim, depths and num_heads together (each can still be given).

        dim: width of the first stage; it doubles with each.  patch_size: pixels of a token of the first stage; the stride of
        the last is patch_size 2^(stages - 1).  window: in tokens; a stage no larger than it is one window, without shift.
        init: "truncated" (Swin: linear layers and position tables normal, deviation 0.02, cut at two units; convolutions
        torch's own) or "xavier" (GreenMIM: linear layers and convolutions xavier-uniform).
        """

        name: Literal["swin"] = "swin"
        image_size: int | Size = 192
        patch_size: int = Field(4, gt=0, le=64)
        channels: int = Field(3, gt=0, le=1024)
        dim: int = Field(128, gt=0, le=2**14)
        depths: tuple[int, ...] = Field((2, 2, 18, 2), min_length=1, max_length=8)
        num_heads: tuple[int, ...] = Field((4, 8, 16, 32), min_length=1, max_length=8)
        window: int = Field(6, gt=0, le=256)
        mlp_ratio: float = Field(4.0, gt=0, le=64)
        masking: Literal["replace", "drop", "none"] = "replace"
        eps: float = Field(1e-5, gt=0)
        drop_path: float = Field(0.0, ge=0, lt=1)
        init: Literal["truncated", "xavier"] = "truncated"
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)

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
        def _divides(self) -> Swin.Config:
            if len(self.depths) != len(self.num_heads):
                raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} need one number a stage each")
            if not 0 < min(self.depths) <= max(self.depths) <= 1024:
                raise ValueError(f"depths {self.depths}: each stage has 1 to 1024 blocks")
            for stage, heads in enumerate(self.num_heads):
                if heads < 1 or (self.dim << stage) % heads:
                    raise ValueError(
                        f"num_heads: width {self.dim << stage} of stage {stage} does not divide into {heads}"
                    )
            check_pixels(self.channels, self.mean, self.std)
            problem = self._misfit(self.sides, self.window)
            if problem:
                given = (
                    f"image_size {'x'.join(map(str, self.sides))}, patch_size {self.patch_size}, depths {self.depths}"
                )
                raise ValueError(f"{given}, window {self.window}: {problem} ({self._nearest()})")
            return self

        @property
        def sides(self) -> Size:
            return pair(self.image_size)

        @property
        def stride(self) -> int:
            """Pixels of a token of the last stage."""
            return self.patch_size << (len(self.depths) - 1)

        def map_of(self, stage: int) -> Size:
            """Tokens (h, w) of a stage."""
            return self.sides[0] // (self.patch_size << stage), self.sides[1] // (self.patch_size << stage)

        def window_of(self, stage: int) -> Size:
            """The window of a stage, in tokens: no larger than its map."""
            side = min(*self.map_of(stage), self.window)
            return side, side

        def _misfit(self, sides: Size, window: int) -> str:
            """Why an image of these sides does not divide; empty if it does."""
            if not 1 <= min(sides) <= max(sides) <= MAX_SIDE:
                return f"each side is 1 to {MAX_SIDE} pixels"
            if sides[0] % self.stride or sides[1] % self.stride:
                return f"the image is not whole units of {self.stride} pixels, the last stage's stride"
            for stage in range(len(self.depths)):
                height, width = (side // (self.patch_size << stage) for side in sides)
                side = min(height, width, window)
                if height % side or width % side:
                    return f"stage {stage} has {height}x{width} tokens, which windows of {side}x{side} do not divide"
            return ""

        def _nearest(self) -> str:
            """The sizes that work nearest to those given: of the image with this window, of windows with this image."""
            around = range(self.stride, MAX_SIDE + 1, self.stride)
            by_distance = sorted(around, key=lambda side: max(abs(side - own) for own in self.sides))
            images = [side for side in by_distance if not self._misfit((side, side), self.window)][:2]
            windows = [window for window in range(2, 65) if not self._misfit(self.sides, window)]
            windows = sorted(windows, key=lambda window: abs(window - self.window))[:2]
            advice = f"nearest image_size for window {self.window}: {' or '.join(map(str, sorted(images)))}"
            return advice + (f", window for this image: {' or '.join(map(str, sorted(windows)))}" if windows else "")

        @property
        def geometry(self) -> Geometry:
            stages = len(self.depths)
            return Geometry(self.sides, self.map_of(stages - 1), self.dim << (stages - 1), self.channels)

        @property
        def dense(self) -> bool:
            return self.masking != "drop"

        @property
        def can_hide(self) -> bool:
            return self.masking != "none"

        @property
        def num_blocks(self) -> int:
            return self.depths[-1]

        @property
        def num_layers(self) -> int:
            return sum(self.depths)

        @property
        def label(self) -> str:
            return "Swin"

    mean: Tensor
    std: Tensor

    def __init__(self, config: Swin.Config) -> None:
        super().__init__()
        self.config, self.geometry, self.dim = config, config.geometry, config.geometry.dim
        self.register_buffer("mean", torch.tensor(config.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(-1, 1, 1), persistent=False)
        self.patch_embed = PatchEmbed(
            self.geometry.image, config.patch_size, config.channels, config.dim, flatten=False
        )
        self.patch_norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if config.masking == "replace" else None
        stages = range(len(config.depths))
        self.stages = nn.ModuleList(nn.ModuleList(self._blocks(stage)) for stage in stages)
        sides = [config.stride // (config.patch_size << stage) for stage in stages]  # of a unit, in tokens
        self.merges = nn.ModuleList(PatchMerge(config.dim << s, sides[s], config.eps) for s in stages[:-1])
        self.norm = nn.LayerNorm(self.dim, eps=config.eps)
        self._init()

    def _blocks(self, stage: int) -> list[Block]:
        config = self.config
        dim, heads, size, window = (
            config.dim << stage,
            config.num_heads[stage],
            config.map_of(stage),
            config.window_of(stage),
        )
        before, last = sum(config.depths[:stage]), max(sum(config.depths) - 1, 1)
        return [
            Block(
                dim,
                heads,
                config.mlp_ratio,
                drop_path=config.drop_path * (before + number) / last,
                eps=config.eps,
                attention=WindowAttention(
                    dim, heads, size, window, self.geometry.grid, shift=number % 2 == 1 and min(size) > window[0]
                ),
            )
            for number in range(config.depths[stage])
        ]

    def _init(self) -> None:
        if self.config.init == "xavier":
            init_xavier(self)
        for module in self.modules():
            if isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.bias.table, std=0.02)
            if isinstance(module, nn.Linear) and self.config.init == "truncated":
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, view: View, mask: Mask | None = None, taps: Sequence[Tap] = ()) -> Encoded:
        """view.image (B, C, H, W) of the configured size -> Encoded; with `drop` its index is mask.visible_index."""
        pixels = (view.pixels() - self.mean) / self.std
        x = to_units(self.patch_norm(self.patch_embed(pixels).permute(0, 2, 3, 1)), self.geometry.grid)
        kept = mask.visible_index if mask is not None and not self.config.dense else None
        if mask is not None and self.mask_token is not None:
            x = torch.where(mask.hidden[:, :, None, None], self.mask_token.to(x.dtype), x)
        if kept is not None:
            x = gather(x, kept)
        x = x.flatten(1, 2)
        found = {}
        for stage, blocks in enumerate(self.stages):
            if stage:
                x = self.merges[stage - 1](x)
            assert isinstance(blocks, nn.ModuleList)
            for number, block in enumerate(blocks):
                x, branch = block(x, kept)
                if stage == len(self.stages) - 1:
                    asked = {tap: x if tap.point == "block" else branch for tap in taps if tap.block == number}
                    found.update(asked)
        return Encoded(self.norm(x), x[:, :0], self.geometry.grid, kept, found, view.box, view.flip)

    def layer_of(self, parameter: str) -> int:
        depths: tuple[int, ...] = self.config.depths
        part, _, rest = parameter.partition(".")
        if part in ("patch_embed", "patch_norm", "mask_token"):
            return 0
        if part == "merges":
            return sum(depths[: int(rest.partition(".")[0]) + 1])
        if part == "stages":
            stage, number = rest.split(".")[:2]
            return sum(depths[: int(stage)]) + int(number) + 1
        return sum(depths) + 1
