"""The tokenizer of BEiT: DALL-E's discrete VAE encoder."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..axes import Teacher
from ..layers.dalle import DALLE_STRIDE, Conv, conv_encoder, map_pixels
from ..types import Geometry, Mask, Rendition, Target, TargetSpec, View
from .pickled import read_tensors

_TRAINED = {
    r"student\.(blocks\..+)": r"\1",
    r"branches\.[^.]+\.head\.output\.([wb])": r"blocks.output.conv.\1",
}
"""Tensors of an objective, and the official names of those that make up the encoder."""


class Encoder(nn.Module):
    """(B, 3, H, W) mapped pixels -> logits (B, vocab_size, H/8, W/8): `conv_encoder`, then ReLU and a 1 x 1 convolution."""

    def __init__(self, vocab_size: int, num_hidden: int, blocks_per_group: int) -> None:
        super().__init__()
        parts = conv_encoder(num_hidden, blocks_per_group)
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv(8 * num_hidden, vocab_size, 1)))
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
        """weights: the official encoder.pkl, read without running code, or a state dict of it (.pth, .safetensors), or the
        weights folder of a dVAE that unimim trained (plugin unimim-dvae); None: random weights, for trials of the
        machinery only."""

        weights_from: ClassVar[tuple[str, ...]] = ("weights",)
        name: Literal["dvae"] = "dvae"
        weights: str | None = None
        vocab_size: int = Field(8192, gt=1, le=2**20)
        num_hidden: int = Field(256, ge=4, le=2**16, multiple_of=4)
        blocks_per_group: int = Field(2, gt=0, le=1024)
        precision: Literal["float32", "bfloat16"] = "float32"

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
        self.rendition = Rendition((geometry.grid[0] * DALLE_STRIDE, geometry.grid[1] * DALLE_STRIDE), "lanczos")
        self.spec = TargetSpec(config.vocab_size, discrete=True)
        self.encoder = Encoder(config.vocab_size, config.num_hidden, config.blocks_per_group)
        if config.weights is not None:
            _load(self.encoder, Path(config.weights))
        for part in self.encoder.blocks[:-1]:
            part.to(self.dtype)

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N) int64."""
        with torch.autocast(view.image.device.type, enabled=False):
            pixels = map_pixels(view.pixels(self.rendition)).to(self.dtype, memory_format=torch.channels_last)
            logits = self.encoder(pixels)
        return Target(logits.argmax(1).flatten(1))


def _load(encoder: Encoder, path: Path) -> None:
    try:
        tensors = _read_trained(path) if path.is_dir() else _read_file(path)
    except SafetensorError as error:
        raise ValueError(f"teacher dvae: cannot read weights from {path}: {error}") from error
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        sizes = "vocab_size, num_hidden and blocks_per_group must be those of the weights"
        raise ValueError(f"teacher dvae: {path} does not fit; {sizes}{_sizes(tensors)}: {error}") from error


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"teacher dvae: no weights at {path}; fetch DALL-E's: unimim teachers fetch dvae --to DIR")
    return load_file(path) if path.suffix == ".safetensors" else read_tensors(path)


def _read_trained(folder: Path) -> dict[str, Tensor]:
    """The encoder under its official names, out of what unimim.weights wrote: a student's blocks, a head's output."""
    if not ((folder / "recipe.yaml").is_file() and (folder / "objective.safetensors").is_file()):
        raise ValueError(
            f"teacher dvae: {folder} is no whole weights folder; a run writes one, RUN/weights, at its end"
        )
    tensors = {}
    for name, tensor in load_file(folder / "objective.safetensors").items():
        for pattern, official in _TRAINED.items():
            if re.fullmatch(pattern, name):
                tensors[re.sub(pattern, official, name)] = tensor
    if not {"blocks.input.w", "blocks.output.conv.w"} <= tensors.keys():
        raise ValueError(f"teacher dvae: {folder} holds no dVAE; train one with the recipes of plugin unimim-dvae")
    return tensors


def _sizes(tensors: Mapping[str, Tensor]) -> str:
    """What to set for these weights, as far as they tell."""
    first, output = tensors.get("blocks.input.b"), tensors.get("blocks.output.conv.b")
    if first is None or output is None:
        return ""
    blocks = {name.split(".")[2] for name in tensors if name.startswith("blocks.group_1.")}
    return f" (vocab_size={len(output)} num_hidden={len(first)} blocks_per_group={len(blocks)})"
