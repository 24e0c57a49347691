"""Building blocks that students and heads share; plugins may use every name below."""

from __future__ import annotations

from ..types import gather, scatter, sequence_rows
from .batchnorm import BatchNorm
from .blocks import Attention, Block, attend, init_truncated, init_xavier, truncated_normal
from .codebooks import lloyd_step, nearest, seed_codes
from .dalle import DALLE_STRIDE, Conv, ConvBlock, conv_encoder, map_pixels
from .patches import check_patches, check_pixels, pair, patchify, unpatchify
from .positions import RelativePositionBias, relative_index, sincos_2d
from .units import PatchMerge, inner_positions, to_units
from .windows import WindowAttention

__all__ = [
    "DALLE_STRIDE",
    "Attention",
    "BatchNorm",
    "Block",
    "Conv",
    "ConvBlock",
    "PatchMerge",
    "RelativePositionBias",
    "WindowAttention",
    "attend",
    "check_patches",
    "check_pixels",
    "conv_encoder",
    "gather",
    "init_truncated",
    "init_xavier",
    "inner_positions",
    "lloyd_step",
    "map_pixels",
    "nearest",
    "pair",
    "patchify",
    "relative_index",
    "scatter",
    "seed_codes",
    "sequence_rows",
    "sincos_2d",
    "to_units",
    "truncated_normal",
    "unpatchify",
]
