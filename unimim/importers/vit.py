"""What the official ViT checkpoints have in common: MAE's, BEiT's and data2vec's name their tensors after timm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..layers.positions import relative_index
from ..recipe import Recipe
from ..students.vit import SIZES
from ..types import Size
from .base import UNTOLD, need

BLOCK = r"((?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(?:weight|bias)|attn\.[qv]_bias)"
ENCODER = {
    r"cls_token": "student.prefix",
    r"patch_embed\.proj\.(weight|bias)": r"student.patch_embed.proj.\1",
    rf"blocks\.(\d+)\.{BLOCK}": r"student.blocks.\1.\2",
    r"norm\.(weight|bias)": r"student.norm.\1",
}
BEIT_ENCODER = ENCODER | {
    r"mask_token": "student.mask_token",
    r"pos_embed": "student.pos_embed",
    r"rel_pos_bias\.relative_position_bias_table": "student.shared_bias.table",
    r"blocks\.(\d+)\.attn\.relative_position_bias_table": r"student.block_bias.\1.table",
    r"blocks\.(\d+)\.gamma_([12])": r"student.blocks.\1.ls\2.gamma",
}
BIASES = {"qkv": "blocks.0.attn.qkv.bias", "qv": "blocks.0.attn.q_bias"}
RELATIVE = {"shared": "rel_pos_bias.", "per_block": "blocks.0.attn."}
TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
INDICES = r"(?:rel_pos_bias|blocks\.\d+\.attn)\.relative_position_index"
HEADS = {numbers["dim"]: numbers["num_heads"] for size, numbers in SIZES.items() if size != "micro"}
"""Attention heads of the published models, by width."""


def encoder(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """{recipe key: value} of a plain ViT whose names begin with `prefix`; a grid is square unless the tensors deny it."""
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    need(state, "cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight")
    dim, channels, *patch = state["patch_embed.proj.weight"].shape
    grid = grid_of(state)
    sizes = {
        "patch_size": _side(patch[0], patch[1]),
        "image_size": UNTOLD if grid is None else _side(grid[0] * patch[0], grid[1] * patch[1]),
        "channels": channels,
        "dim": dim,
        "depth": count(state, "blocks"),
        "num_heads": HEADS.get(dim, UNTOLD),
        "mlp_ratio": ratio(len(state["blocks.0.mlp.fc1.weight"]), dim),
        "qkv_bias": next((kind for kind, name in BIASES.items() if name in state), "none"),
    }
    pixels = {"mean": UNTOLD, "std": UNTOLD} if channels != 3 else {}
    return {f"student.{key}": value for key, value in (sizes | pixels).items()}


def under(prefix: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a table of official names (regular expressions), for a network that stands at `prefix`."""
    return {rf"{prefix}\.{name}" if "|" not in name else rf"{prefix}\.(?:{name})": row for name, row in table.items()}


def beit_encoder(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """`encoder`, and what BEiT's students add: mask tokens, layer scale, learned or relative positions."""
    sizes = encoder(state, prefix)
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    tables = {kind: state[at + TABLE] for kind, at in RELATIVE.items() if at + TABLE in state}
    if len(tables) > 1:
        raise ValueError("the file has a shared position table and one a block; no student of unimim adds both")
    for table in tables.values():
        sizes["student.num_heads"] = table.shape[1]
    if "blocks.0.gamma_1" not in state:
        sizes["student.layer_scale"] = None
    sizes["student.positions"] = "learned" if "pos_embed" in state else "none"
    return sizes | {"student.relative_positions": next(iter(tables), "none")}


def position_index(recipe: Recipe) -> dict[str, Tensor]:
    """The fixed table of row numbers beside every relative position table."""
    return {INDICES: relative_index(recipe.student.geometry.grid, num_prefix=1)}


def grid_of(state: Mapping[str, Tensor]) -> Size | None:
    """Rows and columns of the patch grid, beside one class token; None if the tensors leave them open.

    An h x w grid has h w tokens and (2 h - 1) (2 w - 1) + 3 relative positions; the index table tells h x w from w x h.
    """
    at = next((at for at in RELATIVE.values() if at + TABLE in state), None)
    if at is not None:
        pairs = _factors(len(state[at + TABLE]) - 3)
        grids = [((a + 1) // 2, (b + 1) // 2) for a, b in pairs if a % 2 and b % 2]
        if at + INDEX in state:
            grids = [grid for grid in grids if relative_index(grid, 1).equal(state[at + INDEX].long())]
        if "pos_embed" in state:
            grids = [(h, w) for h, w in grids if h * w == state["pos_embed"].shape[1] - 1]
    else:
        grids = _factors(state["pos_embed"].shape[1] - 1) if "pos_embed" in state else []
    square = next((grid for grid in grids if grid[0] == grid[1]), None)
    return square or (grids[0] if len(grids) == 1 else None)


def _side(height: int, width: int) -> int | list[int]:
    return height if height == width else [height, width]


def _factors(number: int) -> list[Size]:
    return [(a, number // a) for a in range(1, number + 1) if number % a == 0]


def ratio(hidden: int, dim: int) -> float:
    """The MLP ratio r with int(dim r) = hidden."""
    exact = hidden / dim
    return exact if int(dim * exact) == hidden else math.nextafter(exact, math.inf)


def count(state: Mapping[str, Tensor], blocks: str) -> int:
    """How many blocks `<blocks>.<number>.` there are."""
    return 1 + max((int(name.split(".")[1]) for name in state if name.startswith(f"{blocks}.")), default=-1)
