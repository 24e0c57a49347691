"""SplitMask's student: an encoder of visible patches, and a shallow decoder that says something of every patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimim import Encoded, Geometry, Mask, Student, Tap, View, plugins
from unimim.layers import Block, check_patches, check_pixels, init_xavier, pair, sincos_2d


class SplitMask(Student):
    """S(I_masked) = LN(blocks([W class, W E(visible) + positions, mask tokens + positions of what is hidden])).

    E is the core's pre-norm ViT over the class token and the visible patches, without mask tokens; the decoder is a second,
    shallow one of its own width, over the whole grid. It belongs to the student, because both terms read what it says.
    Without a mask the answer is E's, of all patches, and the decoder does not run. Follows El-Nouby et al., 2021
    (arXiv 2112.10740), of which no official code is known: that E sees visible patches alone and that the decoder has two
    layers is the paper's; its width, the class token, sin-cos positions, xavier start values and the last norm are MAE's
    (facebookresearch/mae @ efb2a80, models_mae.py), our choice.
    """

    class Config(Student.Config):
        """decoder_*: width, depth and heads of the decoder; mlp_ratio and eps are E's.

        mean, std: pixel statistics of [0, 1] RGB.
        """

        name: Literal["splitmask"] = "splitmask"
        image_size: int | tuple[int, int] = 224
        patch_size: int = Field(16, gt=0, le=2**13)
        channels: int = Field(3, gt=0, le=1024)
        dim: int = Field(768, gt=0, le=2**16, multiple_of=4)
        depth: int = Field(12, gt=0, le=1024)
        num_heads: int = Field(12, gt=0, le=2**16)
        mlp_ratio: float = Field(4.0, gt=0, le=64)
        decoder_dim: int = Field(512, gt=0, le=2**16, multiple_of=4)
        decoder_depth: int = Field(2, gt=0, le=1024)
        decoder_heads: int = Field(16, gt=0, le=2**16)
        eps: float = Field(1e-6, gt=0)
        drop_path: float = Field(0.0, ge=0, lt=1)
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)

        @model_validator(mode="after")
        def _divides(self) -> SplitMask.Config:
            check_patches(self.image_size, self.patch_size)
            check_pixels(self.channels, self.mean, self.std)
            for width, heads in (("dim", "num_heads"), ("decoder_dim", "decoder_heads")):
                if getattr(self, width) % getattr(self, heads):
                    raise ValueError(
                        f"{width} {getattr(self, width)} does not divide into {heads} {getattr(self, heads)}"
                    )
            return self

        @property
        def geometry(self) -> Geometry:
            (height, width), patch = pair(self.image_size), self.patch_size
            return Geometry(
                (height, width), (height // patch, width // patch), self.dim, self.channels, self.decoder_dim
            )

        @property
        def dense(self) -> bool:
            return False

        @property
        def answers(self) -> Literal["all"]:
            return "all"

        @property
        def num_blocks(self) -> int:
            return self.depth

        @property
        def num_prefix(self) -> int:
            return 1

        @property
        def label(self) -> str:
            return "ViT"

        def encoder(self) -> Student:
            """E, of the sizes that both have."""
            vit = plugins()["students"]["vit"].Config
            shared = type(self).model_fields.keys() & vit.model_fields.keys() - {"name"}
            same = {name: getattr(self, name) for name in shared}
            encoder: Student = vit(masking="drop", positions="sincos", init="xavier", **same).build()
            return encoder

    positions: Tensor

    def __init__(self, config: SplitMask.Config) -> None:
        super().__init__()
        self.config, self.geometry, self.dim = config, config.geometry, config.dim
        width = config.decoder_dim
        self.encoder: Any = config.encoder()
        self.register_buffer("positions", sincos_2d(self.geometry.grid, width), persistent=False)
        self.embed = nn.Linear(config.dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, config.mlp_ratio, eps=config.eps) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.eps)
        for part in (self.embed, self.blocks):
            init_xavier(part)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, view: View, mask: Mask | None = None, taps: Sequence[Tap] = ()) -> Encoded:
        """view.image (B, C, H, W) of the configured size -> Encoded.

        Without a mask: E's tokens (B, N, dim) and class token (B, 1, dim). With one: tokens (B, N, decoder_dim) of the
        decoder, at mask.visible_index and then at mask.hidden_index, and its class token (B, 1, decoder_dim). Taps are of
        E's blocks.
        """
        seen: Encoded = self.encoder(view, mask, taps)
        if mask is None:
            return seen
        index = torch.cat([mask.visible_index, mask.hidden_index], 1)
        known = self.embed(torch.cat([seen.prefix, seen.tokens], 1))
        unknown = self.mask_token.to(known.dtype).expand(*mask.hidden_index.shape, -1)
        places = nn.functional.pad(self.positions[index], (0, 0, 1, 0))
        x = torch.cat([known, unknown], 1) + places
        for block in self.blocks:
            x, _ = block(x)
        x = self.norm(x)
        return Encoded(x[:, 1:], x[:, :1], seen.grid, index, seen.taps, seen.box, seen.flip)

    def layer_of(self, parameter: str) -> int:
        """E's own layers; the decoder stands after the last block."""
        part, _, rest = parameter.partition(".")
        number: int = self.encoder.layer_of(rest) if part == "encoder" else self.config.num_layers + 1
        return number
