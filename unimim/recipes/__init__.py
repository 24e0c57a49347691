"""The shipped recipes: functions that return plain data, one a method, with the source of every number beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Data = Mapping[str, Any]


def sized(name: str, function: Callable[[str], Data], *sizes: str) -> dict[str, Callable[[], Data]]:
    """{name: first size, name-<size>: ...}; the first is the one the paper's tables lead with, and alone a row of Table 1."""
    others = {f"{name}-{size}": _of(function, size, row="") for size in sizes[1:]}
    return {name: _of(function, sizes[0]), **others}


def beit_style(layer_scale: float) -> dict[str, object]:
    """What BEiT's students (BEiT, BEiT v2, data2vec, MaskDistill) share: mask tokens, one relative position table, no
    absolute positions, no bias on keys."""
    return {
        "masking": "replace",
        "positions": "none",
        "relative_positions": "shared",
        "layer_scale": layer_scale,
        "qkv_bias": "qv",
        "init": "truncated",
    }


def _of(function: Callable[[str], Data], size: str, **changes: str) -> Callable[[], Data]:
    def recipe() -> Data:
        return {**function(size), **changes}

    recipe.__doc__ = f"{(function.__doc__ or '').strip().partition(chr(10))[0]} Size: {size}."
    recipe.__module__ = function.__module__
    return recipe
