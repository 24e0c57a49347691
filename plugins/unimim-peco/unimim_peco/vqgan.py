"""The tokenizer of PeCo as Table 1 names it: the frozen encoder and codebook of a VQGAN."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimim import Geometry, Mask, Rendition, Target, TargetSpec, Teacher, View
from unimim.importers import need, read_checkpoint
from unimim.layers import nearest

UNUSED = ("decoder.", "post_quant_conv.", "loss.")
"""What only the training of the tokenizer needs: names that begin so are left out."""
GROUPS = 32


def _norm(dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, dim, eps=1e-6)


class ResBlock(nn.Module):
    """x -> nin_shortcut(x) + f(f(x)), f(x) = 3 x 3 convolution of swish(GroupNorm(x)); (B, C, H, W) of any width."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(num_in), nn.Conv2d(num_in, num_out, 3, padding=1)
        self.norm2, self.conv2 = _norm(num_out), nn.Conv2d(num_out, num_out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if num_in == num_out else nn.Conv2d(num_in, num_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(inner)))
        return out


class Attention(nn.Module):
    """x -> x + W softmax(q k^T / sqrt(C)) v over all places of the map (B, C, H, W): one head as wide as the map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = _norm(dim)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(dim, dim, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.proj_out(mixed.squeeze(1).transpose(1, 2).reshape(x.shape))
        return out


class Downsample(nn.Module):
    """3 x 3 convolution of stride 2, after one row of zeros below and one column on the right."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where the level has it, then half the sides."""

    def __init__(self, num_in: int, num_out: int, num_blocks: int, attends: bool, last: bool) -> None:
        super().__init__()
        widths = [num_in] + [num_out] * (num_blocks - 1)
        self.block = nn.ModuleList(ResBlock(width, num_out) for width in widths)
        self.attn = nn.ModuleList(Attention(num_out) if attends else nn.Identity() for _ in widths)
        self.downsample = nn.Identity() if last else Downsample(num_out)

    def forward(self, x: Tensor) -> Tensor:
        for block, attn in zip(self.block, self.attn, strict=True):
            x = attn(block(x))
        out: Tensor = self.downsample(x)
        return out


class Encoder(nn.Module):
    """(B, 3, H, W) pixels in [-1, 1] -> (B, latent_dim, H / stride, W / stride).

    After CompVis/taming-transformers @ 3ba01b2, taming/modules/diffusionmodules/model.py; parts are named as in its files.
    """

    def __init__(self, config: VQGAN.Config) -> None:
        super().__init__()
        widths = [config.dim, *(config.dim * multiplier for multiplier in config.multipliers)]
        last = len(config.multipliers) - 1
        self.conv_in = nn.Conv2d(3, config.dim, 3, padding=1)
        self.down = nn.Sequential(
            *(
                Level(widths[i], widths[i + 1], config.num_res_blocks, i in config.attention, i == last)
                for i in range(last + 1)
            )
        )
        dim = widths[-1]
        parts = OrderedDict[str, nn.Module](
            block_1=ResBlock(dim, dim), attn_1=Attention(dim), block_2=ResBlock(dim, dim)
        )
        self.mid = nn.Sequential(parts)
        self.norm_out = _norm(dim)
        self.conv_out = nn.Conv2d(dim, config.latent_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.down(self.conv_in(x)))
        latent: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return latent


class VQGAN(Teacher):
    """T(I)_i = argmin_k |z_i - c_k|^2, z = W E(2 I - 1): the nearest of K codes c to place i of the encoder's map.

    E is convolutional and halves the sides between its levels; W is a 1 x 1 convolution. It reads the crop at the student's
    grid times 2^(levels - 1) pixels. The first code wins a tie. Follows CompVis/taming-transformers @ 3ba01b2,
    taming/models/vqgan.py and taming/modules/vqvae/quantize.py. PeCo's own tokenizer was not published; its abstract calls
    it a dVAE, MaskDistill's Table 1 a VQGAN.
    Deviations: |z|^2, the same for all codes, is left out of the distances, which are float32 outside autocast; no one-hot
    matrix (B N, num_codes).
    """

    class Config(Teacher.Config):
        """checkpoint: a file of CompVis/taming-transformers with a plain codebook; None: random weights, for trials of the
        machinery only.
        dim: width of the first convolution (ch).  multipliers: width of each level, in units of dim (ch_mult).
        num_res_blocks: of a level.  attention: levels with attention, 0-based; officially said by resolution
        (attn_resolutions [16] of 256 pixels is level 4).  latent_dim: channels of the encoder's map (z_channels).
        num_codes, code_dim: codes c (num_codes, code_dim) (n_embed, embed_dim).
        Defaults are those of the public ImageNet model with 16 pixels a code, but for its 1024 codes.
        """

        weights_from: ClassVar[tuple[str, ...]] = ("checkpoint",)
        name: Literal["vqgan"] = "vqgan"
        checkpoint: str | None = None
        dim: int = Field(128, gt=0, le=2**14, multiple_of=GROUPS)
        multipliers: tuple[Annotated[int, Field(gt=0, le=64)], ...] = Field((1, 1, 2, 2, 4), min_length=1, max_length=8)
        num_res_blocks: int = Field(2, gt=0, le=64)
        attention: tuple[int, ...] = (4,)
        latent_dim: int = Field(256, gt=0, le=2**16)
        num_codes: int = Field(8192, gt=1, le=2**20)
        code_dim: int = Field(256, gt=0, le=2**16)

        @model_validator(mode="after")
        def _levels(self) -> VQGAN.Config:
            last = len(self.multipliers) - 1
            if [*self.attention] != sorted({*self.attention} & {*range(last + 1)}):
                raise ValueError(
                    f"attention {_text(self.attention)}: levels are 0 to {last}, each at most once and in order; "
                    f"set attention=[{last}] for the last one alone"
                )
            return self

        @property
        def stride(self) -> int:
            """Pixels of a code."""
            return 1 << (len(self.multipliers) - 1)

        @property
        def discrete(self) -> bool:
            return True

        @property
        def label(self) -> str:
            return "VQGAN"

    codes: Tensor

    def __init__(self, config: VQGAN.Config, geometry: Geometry) -> None:
        """ValueError if the images are not RGB, or the checkpoint cannot be read, has other sizes or unknown tensors."""
        super().__init__()
        if geometry.channels != 3:
            raise ValueError(f"teacher vqgan reads RGB, not {geometry.channels} channels")
        state = None if config.checkpoint is None else _read(Path(config.checkpoint), config)
        self.config = config
        self.rendition = Rendition((geometry.grid[0] * config.stride, geometry.grid[1] * config.stride), "bicubic")
        self.spec = TargetSpec(config.num_codes, discrete=True)
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_dim, config.code_dim, 1)
        codes = torch.empty(config.num_codes, config.code_dim)
        self.register_buffer("codes", codes.uniform_(-1 / config.num_codes, 1 / config.num_codes))
        if state is not None:
            try:
                self.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(f"teacher vqgan: {config.checkpoint} does not fit: {error}") from None

    def forward(self, view: View, mask: Mask | None = None) -> Target:
        """tokens (B, N) int64."""
        with torch.autocast(view.image.device.type, enabled=False):
            z = self.features(view)
            return Target(nearest(z.flatten(0, 1), self.codes).view(z.shape[:2]))

    def features(self, view: View) -> Tensor:
        """z (B, N, code_dim)."""
        z: Tensor = self.quant_conv(self.encoder(2 * view.pixels(self.rendition) - 1))
        return z.flatten(2).transpose(1, 2)


def _text(numbers: tuple[int, ...] | int) -> str:
    """As an override on the command line writes it."""
    return str(numbers) if isinstance(numbers, int) else f"[{','.join(map(str, numbers))}]"


def _read(path: Path, config: VQGAN.Config) -> dict[str, Tensor]:
    """The tensors of a file under our names, if it is a tokenizer of the configured sizes; unknown names stay, so that a
    strict load reports them."""
    if not path.is_file():
        raise ValueError(
            f"teacher vqgan: no tokenizer at {path}; train one with CompVis/taming-transformers, or fetch its file, ahead "
            f"of time"
        )
    state = read_checkpoint(path)
    try:
        sizes = sizes_of(state)
    except ValueError as error:
        raise ValueError(f"teacher vqgan: {path} is no VQGAN with a plain codebook: {error}") from None
    other = [f"teacher.{name}={_text(size)}" for name, size in sizes.items() if size != getattr(config, name)]
    if other:
        raise ValueError(f"teacher vqgan: {path} has other sizes; set {' '.join(other)}")
    names = {"quantize.embedding.weight": "codes"}
    return {names.get(name, name): tensor for name, tensor in state.items() if not name.startswith(UNUSED)}


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
    """{field of VQGAN.Config: its value} that the tensors of an official file tell: all of them."""
    need(state, "encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight", "encoder.conv_out.weight")
    need(state, "quant_conv.weight", "quantize.embedding.weight")

    def numbered(pattern: str) -> dict[int, int]:
        """{the number in a name: output channels}, by number."""
        found = [(re.fullmatch(pattern, name), len(tensor)) for name, tensor in state.items() if tensor.ndim]
        return dict(sorted((int(match[1]), channels) for match, channels in found if match))

    dim = len(state["encoder.conv_in.weight"])
    num_codes, code_dim = state["quantize.embedding.weight"].shape
    return {
        "dim": dim,
        "multipliers": tuple(n // dim for n in numbered(r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight").values()),
        "num_res_blocks": len(numbered(r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight")),
        "attention": tuple(numbered(r"encoder\.down\.(\d+)\.attn\.0\.q\.weight")),
        "latent_dim": len(state["encoder.conv_out.weight"]),
        "num_codes": num_codes,
        "code_dim": code_dim,
    }
