"""DALL-E's convolutional decoder."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from unimim.layers import Conv, ConvBlock


class Decoder(nn.Module):
    """(B, num_init, h, w) embedded codes -> (B, 3, 8h, 8w) mapped pixels.

    Four groups of blocks, 8n, 4n, 2n and n wide for n = num_hidden, each side doubled (nearest) after the first three; then
    ReLU and a 1 x 1 convolution. openai/DALL-E @ 5be4b23, dall_e/decoder.py, by its names, but for the code embedding, which
    is a convolution of one-hot maps there, and the second half of the output: the scales of the logit-Laplace distribution.
    """

    def __init__(self, num_init: int, num_hidden: int, blocks_per_group: int) -> None:
        super().__init__()
        gain = 1 / (4 * blocks_per_group) ** 2
        parts = OrderedDict[str, nn.Module]()
        width = num_init
        for group in range(1, 5):
            blocks = OrderedDict[str, nn.Module]()
            for number in range(1, blocks_per_group + 1):
                wider = num_hidden * 2 ** (4 - group)
                blocks[f"block_{number}"] = ConvBlock(width, wider, gain, (1, 3, 3, 3))
                width = wider
            if group < 4:
                blocks["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
            parts[f"group_{group}"] = nn.Sequential(blocks)
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv(width, 3, 1)))
        self.blocks = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        pixels: Tensor = self.blocks(x)
        return pixels
