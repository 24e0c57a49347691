"""Official checkpoints to unimim weights.

An importer is a class with tables: how to rename the official tensors, and which registered recipe completes what their
shapes say. A plugin that knows another project's files registers one like any other component:

    # my_plugin.py, named in the entry-point group "unimim"
    from unimim import hookimpl

    @hookimpl
    def unimim_importers():
        return {"mine": "my_plugin.importer:Mine"}

    # my_plugin/importer.py
    from unimim.importers import Importer, encoder

    class Mine(Importer):
        "Official checkpoints of my method (me/mine)."

        name = "mine"
        recipe = "mine"
        rules = {r"encoder\\.cls_token": "student.prefix", r"decoder\\.0\\.(weight|bias)": r"branches.mim.head.proj.\\1", ...}
        prediction = "decoder.0.bias"

        def infer(self, state):
            return encoder(state, "encoder.") | {"student.positions": "learned"}

`Importer.read` does the rest: it fails on anything missing or misshapen, and lists what it left out and why.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Importer": "base",
    "Imported": "base",
    "UNTOLD": "base",
    "need": "base",
    "BEIT_ENCODER": "vit",
    "BLOCK": "vit",
    "ENCODER": "vit",
    "INDICES": "vit",
    "beit_encoder": "vit",
    "count": "vit",
    "encoder": "vit",
    "position_index": "vit",
    "ratio": "vit",
    "under": "vit",
    "DECODER": "mae",
    "decoder": "mae",
    "decoder_positions": "mae",
    "SWIN_ENCODER": "swin",
    "SWIN_IGNORED": "swin",
    "swin_encoder": "swin",
    "read_checkpoint": ".foreign",
    "read_weights": ".weights",
    "convert": "commands",
}
__all__ = [
    "BEIT_ENCODER",
    "BLOCK",
    "DECODER",
    "ENCODER",
    "INDICES",
    "SWIN_ENCODER",
    "SWIN_IGNORED",
    "UNTOLD",
    "Imported",
    "Importer",
    "beit_encoder",
    "convert",
    "count",
    "decoder",
    "decoder_positions",
    "encoder",
    "need",
    "position_index",
    "ratio",
    "read_checkpoint",
    "read_weights",
    "swin_encoder",
    "under",
]

if TYPE_CHECKING:
    from ..foreign import read_checkpoint
    from ..weights import read_weights
    from .base import UNTOLD, Imported, Importer, need
    from .commands import convert
    from .mae import DECODER, decoder, decoder_positions
    from .swin import SWIN_ENCODER, SWIN_IGNORED, swin_encoder
    from .vit import (
        BEIT_ENCODER,
        BLOCK,
        ENCODER,
        INDICES,
        beit_encoder,
        count,
        encoder,
        position_index,
        ratio,
        under,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'unimim.importers' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
