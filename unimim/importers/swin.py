"""What the official Swin checkpoints have in common: SimMIM's and GreenMIM's name their tensors after Swin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import UNTOLD, need
from .vit import count, ratio

SWIN_ENCODER = {
    r"mask_token": "student.mask_token",
    r"patch_embed\.proj\.(weight|bias)": r"student.patch_embed.proj.\1",
    r"patch_embed\.norm\.(weight|bias)": r"student.patch_norm.\1",
    r"layers\.(\d+)\.blocks\.(\d+)\.(norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.(weight|bias)": (
        r"student.stages.\1.\2.\3.\4"
    ),
    r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table": r"student.stages.\1.\2.attn.bias.table",
    r"layers\.(\d+)\.downsample\.(norm\.weight|norm\.bias|reduction\.weight)": r"student.merges.\1.\2",
    r"norm\.(weight|bias)": r"student.norm.\1",
}
SWIN_IGNORED = {
    r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_index": "computed by unimim",
    r"layers\.\d+\.blocks\.\d+\.attn_mask": "computed by unimim",
}


def swin_encoder(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """{recipe key: value} of a Swin whose names begin with `prefix`.

    Heads and windows are read from the position tables. The image's side is read from the first mask of shifted windows
    (one for each window of the first stage); without it an override must give it.
    """
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    first = "layers.0.blocks.0"
    table = "attn.relative_position_bias_table"
    need(state, "patch_embed.proj.weight", f"{first}.{table}", f"{first}.mlp.fc1.weight", "norm.weight")
    dim, channels, patch, _ = state["patch_embed.proj.weight"].shape
    stages = range(count(state, "layers"))
    tables = [state[f"layers.{stage}.blocks.0.{table}"] for stage in stages]
    windows = [(math.isqrt(len(rows)) + 1) // 2 for rows in tables]
    sizes = {
        "image_size": _image_size(state, patch, windows),
        "patch_size": patch,
        "channels": channels,
        "dim": dim,
        "depths": [_depth(state, stage) for stage in stages],
        "num_heads": [rows.shape[1] for rows in tables],
        "window": max(windows),
        "mlp_ratio": ratio(len(state[f"{first}.mlp.fc1.weight"]), dim),
    }
    pixels = {"mean": UNTOLD, "std": UNTOLD} if channels != 3 else {}
    return {f"student.{key}": value for key, value in (sizes | pixels).items()}


def _depth(state: Mapping[str, Tensor], stage: int) -> int:
    head = f"layers.{stage}."
    return count({name.removeprefix(head): x for name, x in state.items() if name.startswith(head)}, "blocks")


def _image_size(state: Mapping[str, Tensor], patch: int, windows: list[int]) -> Any:
    """From the number of windows of a shifted stage, or from a last stage whose window is its whole map."""
    for stage, window in enumerate(windows):
        mask = state.get(f"layers.{stage}.blocks.1.attn_mask")
        if mask is not None:
            return math.isqrt(len(mask)) * window * (patch << stage)
    if windows[-1] < windows[0]:
        return windows[-1] * (patch << (len(windows) - 1))
    return UNTOLD
