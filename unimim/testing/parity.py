"""Stored training steps of other implementations: what a ported method is compared with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..types import Batch, Mask, View


class Golden(Mapping[str, Tensor]):
    """One .npz file: its arrays as tensors, and JSON strings.

    The keys that this class knows: "config" (JSON of every size), "images" (B, C, H, W) float, normalized already, and
    "mask" (B, N) bool, True = hidden.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def config(self) -> dict[str, Any]:
        return self.json("config")

    def json(self, name: str) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(str(self.arrays[name]))
        return decoded

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): self[name] for name in self if name.startswith(prefix)}

    def batch(self, hidden: Tensor | None = None) -> Batch:
        """The stored images under the stored mask, or under hidden (B, N) bool."""
        mask = Mask.from_hidden(self["mask"] if hidden is None else hidden)
        return Batch({"main": View(self["images"])}, {"main": (mask,)}, torch.arange(len(self["images"])))

    def unnormalized(self, *parts: str) -> list[str]:
        """Overrides that keep `parts` of a recipe (student, teacher) from normalizing the stored images again."""
        channels = self["images"].shape[1]
        return [f"{part}.{key}={[value] * channels}" for part in parts for key, value in (("mean", 0.0), ("std", 1.0))]


def check_gradients(
    module: nn.Module, loaded: Mapping[str, str], stored: Mapping[str, Tensor], tolerance: float = 1e-4
) -> None:
    """Every stored gradient, by official name, is the module's within `tolerance` of its largest entry.

    loaded: {name in the module: official name}, as `Importer.read` returns it. An importer that lays a tensor out anew
    (`Importer.adapt`) must be applied to `stored` first.
    """
    ours = {name: parameter.grad for name, parameter in module.named_parameters()}
    names = {official: name for name, official in loaded.items()}
    if not stored:
        raise AssertionError("no gradient is stored")
    for official, gradient in stored.items():
        own = ours[names[official]]
        if own is None:
            raise AssertionError(f"{official}: {names[official]} has no gradient")
        worst = float((own - gradient).abs().max() / gradient.abs().max())
        if not worst <= tolerance:
            raise AssertionError(f"{official}: off by {worst:.1e} of its largest entry")
