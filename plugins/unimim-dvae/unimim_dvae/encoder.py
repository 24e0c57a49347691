"""DALL-E's convolutional encoder as the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from unimim import Encoded, Geometry, Mask, Student, Tap, View
from unimim.layers import DALLE_STRIDE, check_patches, conv_encoder, map_pixels, pair


class DVaeEncoder(Student):
    """S(I)_i = ReLU(groups(0.8 I + 0.1))_i: what the encoder of DALL-E's discrete VAE says of 8 x 8 pixels before its logits.

    Four groups of residual blocks, n, 2n, 4n and 8n wide for n = num_hidden, max-pooling after the first three; openai/DALL-E
    @ 5be4b23, dall_e/encoder.py. Reads whole RGB images: convolutions see across any patch, so that nothing can be hidden.
    """

    class Config(Student.Config):
        """num_hidden: n; the tokens are 8n wide."""

        name: Literal["dvae_encoder"] = "dvae_encoder"
        image_size: int | tuple[int, int] = 112
        num_hidden: int = Field(256, ge=4, le=2**13, multiple_of=4)
        blocks_per_group: int = Field(2, gt=0, le=1024)

        @model_validator(mode="after")
        def _divides(self) -> DVaeEncoder.Config:
            check_patches(self.image_size, DALLE_STRIDE)
            return self

        @property
        def geometry(self) -> Geometry:
            height, width = pair(self.image_size)
            return Geometry((height, width), (height // DALLE_STRIDE, width // DALLE_STRIDE), 8 * self.num_hidden)

        @property
        def can_hide(self) -> bool:
            return False

        @property
        def num_layers(self) -> int:
            return 4 * self.blocks_per_group

        @property
        def label(self) -> str:
            return "ConvNet"

    def __init__(self, config: DVaeEncoder.Config) -> None:
        super().__init__()
        self.config, self.geometry, self.dim = config, config.geometry, config.geometry.dim
        self.blocks = nn.Sequential(conv_encoder(config.num_hidden, config.blocks_per_group))
        self.relu = nn.ReLU()

    def forward(self, view: View, mask: Mask | None = None, taps: Sequence[Tap] = ()) -> Encoded:
        """view.image (B, 3, H, W) -> tokens (B, N, 8n), at least 0."""
        pixels = map_pixels(view.pixels()).contiguous(memory_format=torch.channels_last)  # 0.6 of the time on a CPU
        tokens = self.relu(self.blocks(pixels)).flatten(2).mT
        return Encoded(tokens, tokens[:, :0], self.geometry.grid, box=view.box, flip=view.flip)

    def layer_of(self, parameter: str) -> int:
        _, part, *rest = parameter.split(".")
        if part == "input":
            return 0
        group, block = int(part.removeprefix("group_")), int(rest[0].removeprefix("block_"))
        number: int = (group - 1) * self.config.blocks_per_group + block
        return number
