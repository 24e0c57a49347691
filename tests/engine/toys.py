"""A tiny recipe and a tiny source for engine tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimim import Recipe, load
from unimim.engine.data.decode import BadImage
from unimim.engine.run import Run

SMALL = (
    "student.image_size=16",
    "student.patch_size=4",
    "student.dim=16",
    "student.depth=2",
    "student.num_heads=2",
    "batch=8",
    "epochs=3",
    "precision=float32",
)
SMOOTH = "optimization.eps=0.01"
"""For comparing weights: with AdamW's usual eps a gradient of pure rounding noise (a key's bias) moves a full step."""
DECODER = ("head.dim=16", "head.depth=1", "head.num_heads=2")
BEIT_STYLE = (
    "student.positions=none",
    "student.relative_positions=shared",
    "student.layer_scale=0.1",
    "student.qkv_bias=qv",
    "student.init=truncated",
)
RECIPES = {
    "mae-micro": DECODER,
    "beit-micro": (*BEIT_STYLE, "teacher.num_codes=8", "mask.exact=false", "student.drop_path=0.2"),
    "data2vec-micro": ("teacher.layers=[0,1]", "mask.exact=false"),
}


def recipe(name: str = "mae-micro", *more: str) -> Recipe:
    return load(name, [*SMALL, *RECIPES[name], *more])


def run(out: Path, **changes: Any) -> Run:
    return Run(**{"out": out, "device": "cpu", "workers": 0, "log_every": 1, **changes})


class Noise:
    """`length` random images of 20 x 18 pixels, the same for every index; those in `bad` cannot be read."""

    classes = ("a", "b")

    def __init__(self, length: int = 26, bad: tuple[int, ...] = ()) -> None:
        self.length, self.bad = length, bad

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"noise/{index}.png"

    def read(self, index: int) -> Tensor:
        if index in self.bad:
            raise BadImage(self.name(index), "made unreadable")
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 20, 18), generator=generator, dtype=torch.uint8)

    def label(self, index: int) -> int:
        return index % 2

    def fingerprint(self) -> str:
        return f"noise-{self.length}"
