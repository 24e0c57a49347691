"""The convolutional networks of DALL-E's discrete VAE; parameters keep their official names."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DALLE_STRIDE = 8
"""Pixels a token: three times max-pooling by two."""


def map_pixels(image: Tensor) -> Tensor:
    """0.8 x + 0.1: keeps [0, 1] pixels off the ends, where the logit-Laplace distribution has none."""
    return 0.8 * image + 0.1


class Conv(nn.Module):
    """k x k convolution that keeps the size; its parameters are called w and b in the official files."""

    def __init__(self, num_in: int, num_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(num_out, num_in, kernel, kernel) / math.sqrt(num_in * kernel**2))
        self.b = nn.Parameter(torch.zeros(num_out))

    def forward(self, x: Tensor) -> Tensor:
        w = self.w.flatten(1).view_as(
            self.w
        )  # its gradient is then laid out as w is, whatever x's layout: DDP asks for it
        return F.conv2d(x, w, self.b, padding=self.w.shape[-1] // 2)


class ConvBlock(nn.Module):
    """x -> id_path(x) + gain * res_path(x); res_path is four times ReLU and convolution, at a quarter of the width.

    kernels: of the four convolutions; (3, 3, 3, 1) in the encoder, (1, 3, 3, 3) in the decoder.
    """

    def __init__(
        self, num_in: int, num_out: int, gain: float, kernels: tuple[int, int, int, int] = (3, 3, 3, 1)
    ) -> None:
        super().__init__()
        self.gain = gain
        width = num_out // 4
        self.id_path = nn.Identity() if num_in == num_out else Conv(num_in, num_out, 1)
        widths = [num_in, width, width, width, num_out]
        parts = OrderedDict[str, nn.Module]()
        for number, kernel in enumerate(kernels, 1):
            parts[f"relu_{number}"] = nn.ReLU()
            parts[f"conv_{number}"] = Conv(widths[number - 1], widths[number], kernel)
        self.res_path = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.id_path(x) + self.gain * self.res_path(x)
        return out


def conv_encoder(num_hidden: int, blocks_per_group: int) -> OrderedDict[str, nn.Module]:
    """The encoder before its output: (B, 3, H, W) mapped pixels -> (B, 8 num_hidden, H/8, W/8), by official names.

    Four groups of blocks, n, 2n, 4n and 8n wide for n = num_hidden, with max-pooling after the first three, after
    openai/DALL-E @ 5be4b23 dall_e/encoder.py.
    """
    widths = [num_hidden, *(num_hidden * 2**group for group in range(4))]
    gain = 1 / (4 * blocks_per_group) ** 2
    parts = OrderedDict[str, nn.Module](input=Conv(3, num_hidden, 7))
    for group in range(4):
        inputs = [widths[group]] + [widths[group + 1]] * (blocks_per_group - 1)
        blocks = OrderedDict[str, nn.Module]()
        for number, num_in in enumerate(inputs, 1):
            blocks[f"block_{number}"] = ConvBlock(num_in, widths[group + 1], gain)
        if group < 3:
            blocks["pool"] = nn.MaxPool2d(2)
        parts[f"group_{group + 1}"] = nn.Sequential(blocks)
    return parts
