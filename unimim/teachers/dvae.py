"""The tokenizer of BEiT: DALL-E's discrete VAE encoder."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..axes import Teacher
from ..types import Geometry, Mask, Rendition, Target, TargetSpec, View
from .pickled import read_tensors

_STRIDE = 8


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
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """x -> id_path(x) + gain * res_path(x); res_path is four times ReLU and convolution, at a quarter of the width."""

    def __init__(self, num_in: int, num_out: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        width = num_out // 4
        self.id_path = nn.Identity() if num_in == num_out else Conv(num_in, num_out, 1)
        sizes = [(num_in, width, 3), (width, width, 3), (width, width, 3), (width, num_out, 1)]
        parts = OrderedDict[str, nn.Module]()
        for number, size in enumerate(sizes, 1):
            parts[f"relu_{number}"] = nn.ReLU()
            parts[f"conv_{number}"] = Conv(*size)
        self.res_path = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.id_path(x) + self.gain * self.res_path(x)
        return out


class Encoder(nn.Module):
    """(B, 3, H, W) mapped pixels -> logits (B, vocab_size, H/8, W/8), after openai/DALL-E @ 5be4b23 dall_e/encoder.py.

    Four groups of blocks, n, 2n, 4n and 8n wide for n = num_hidden, with max-pooling after the first three.
    """

    def __init__(self, vocab_size: int, num_hidden: int, blocks_per_group: int) -> None:
        super().__init__()
        widths = [num_hidden, *(num_hidden * 2**group for group in range(4))]
        gain = 1 / (4 * blocks_per_group) ** 2
        parts = OrderedDict[str, nn.Module](input=Conv(3, num_hidden, 7))
        for group in range(4):
            inputs = [widths[group]] + [widths[group + 1]] * (blocks_per_group - 1)
            blocks = OrderedDict[str, nn.Module]()
            for number, num_in in enumerate(inputs, 1):
                blocks[f"block_{number}"] = Block(num_in, widths[group + 1], gain)
            if group < 3:
                blocks["pool"] = nn.MaxPool2d(2)
            parts[f"group_{group + 1}"] = nn.Sequential(blocks)
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv(widths[-1], vocab_size, 1)))
        self.blocks = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        *body, output = self.blocks
        for part in body:
            x = part(x)
        logits: Tensor = output(x.float())
        return logits


class DVae(Teacher):
    """T(I)_i = argmax over the vocabulary of the encoder's logits at patch i, from the crop at 8 pixels a token.

    The crop is cut with the Lanczos filter and its pixels mapped by 0.8 x + 0.1 (microsoft/unilm @ 768a3c8 beit/).
    Deviation: officially the precision follows the device (float16 on CUDA), here it is the one configured; the last
    convolution is float32 in both. Ids at near-ties depend on it.
    """

    class Config(Teacher.Config):
        """weights: the official encoder.pkl, read without running code, or a state dict of it (.pth, .safetensors);
        None: random weights, for trials of the machinery only."""

        name: Literal["dvae"] = "dvae"
        weights: str | None = None
        vocab_size: int = Field(8192, gt=1, le=2**20)
        num_hidden: int = Field(256, ge=4, le=2**16, multiple_of=4)
        blocks_per_group: int = Field(2, gt=0, le=1024)
        precision: Literal["float32", "bfloat16"] = "float32"

        @property
        def reloads(self) -> bool:
            return self.weights is not None

        @property
        def discrete(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "dVAE"

    def __init__(self, config: DVae.Config, geometry: Geometry) -> None:
        super().__init__()
        if geometry.channels != 3:
            raise ValueError(f"teacher dvae reads RGB, not {geometry.channels} channels")
        self.config = config
        self.dtype: torch.dtype = getattr(torch, config.precision)
        self.rendition = Rendition((geometry.grid[0] * _STRIDE, geometry.grid[1] * _STRIDE), "lanczos")
        self.spec = TargetSpec(config.vocab_size, discrete=True)
        self.encoder = Encoder(config.vocab_size, config.num_hidden, config.blocks_per_group)
        if config.weights is not None:
            _load(self.encoder, Path(config.weights))
        self.encoder.to(memory_format=torch.channels_last)  # 0.86 of the time on a CPU
        for part in self.encoder.blocks[:-1]:
            part.to(self.dtype)

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N) int64."""
        with torch.autocast(view.image.device.type, enabled=False):
            logits = self.encoder(map_pixels(view.pixels(self.rendition)).to(self.dtype))
        return Target(logits.argmax(1).flatten(1))


def _load(encoder: Encoder, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"teacher dvae: no weights at {path}; fetch DALL-E's: unimim teachers fetch dvae --to DIR")
    try:
        encoder.load_state_dict(load_file(path) if path.suffix == ".safetensors" else read_tensors(path))
    except (RuntimeError, SafetensorError) as error:
        sizes = "vocab_size, num_hidden and blocks_per_group"
        raise ValueError(f"teacher dvae: {path} does not fit; {sizes} must be those of the weights: {error}") from error
