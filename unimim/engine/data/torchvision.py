"""Data sets of torchvision, downloaded when first opened."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .decode import BadImage, from_pillow
from .splits import SPLIT_FOLDERS, Split, digest, is_held_out


class Torchvision:
    """Chosen images of a torchvision data set."""

    def __init__(self, dataset: Any, title: str, chosen: Sequence[int]) -> None:
        self._dataset, self._title = dataset, title
        self._chosen = np.array(chosen, np.int64)
        targets = _targets(dataset)
        self._labels = np.full(len(chosen), -1) if targets is None else targets[self._chosen]
        self.classes = () if targets is None else _class_names(dataset, int(targets.max()) + 1)

    def __len__(self) -> int:
        return len(self._chosen)

    def name(self, index: int) -> str:
        return f"{self._title}/{self._chosen[index]}"

    def read(self, index: int) -> torch.Tensor:
        name = self.name(index)
        try:
            image = self._dataset[int(self._chosen[index])][0]
        except Exception as error:  # whatever this data set raises
            raise BadImage(name, f"cannot be read ({type(error).__name__}: {error}): download it again") from error
        return from_pillow(image, name)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def fingerprint(self) -> str:
        return digest([f"{self._title} {len(self._dataset)}", *map(str, self._chosen)])


def open_torchvision(name: str, split: Split, hold_out: bool = True) -> Torchvision:
    import torchvision.datasets  # costs seconds

    kind = getattr(torchvision.datasets, name, None)
    parameters = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    if "root" not in parameters:
        near = [other for other in difflib.get_close_matches(name, torchvision.datasets.__all__, 3) if other != name]
        hint = f": did you mean {' or '.join(near)}?" if near else ", such as CIFAR10"
        raise ValueError(f"torchvision has no data set {name!r} that is kept in a folder{hint}")
    choices: list[dict[str, Any]] = [{}]
    if "train" in parameters:
        choices = [{"train": split == "train"}]
    elif "split" in parameters:
        names = (*SPLIT_FOLDERS[split], "trainval") if split == "train" else SPLIT_FOLDERS[split]
        choices = [{"split": choice} for choice in names]
    title = f"torchvision:{name}"
    dataset = _construct(kind, choices, {"download": True} if "download" in parameters else {}, title)
    chosen: Sequence[int] = range(len(dataset))
    if choices != [{}]:
        title += f"/{split}"
    elif hold_out:
        chosen = [index for index in chosen if is_held_out(str(index)) == (split == "val")]
    return Torchvision(dataset, title, chosen)


def _construct(kind: Any, choices: list[dict[str, Any]], common: dict[str, Any], title: str) -> Any:
    """The data set, by the first of the choices whose split it has."""
    root = Path(os.environ.get("UNIMIM_DATA") or "~/.cache/unimim").expanduser()
    failure: Exception | None = None
    for choice in choices:
        try:
            root.mkdir(parents=True, exist_ok=True)
            dataset = kind(str(root), **choice, **common)
            if not isinstance(dataset[0][0], Image.Image):
                raise TypeError("its items are not images")
            return dataset
        except Exception as error:  # network, disk, checksum, missing package: torchvision has no common type
            failure = error
            if "argument split" not in str(error):
                break
    raise ValueError(
        f"{title} cannot be opened in {root} ({type(failure).__name__}: {failure}). Without a network: run "
        f"torchvision.datasets.{kind.__name__}(root, download=True) on a machine that has one, copy its root here and "
        "set UNIMIM_DATA to it; or give a folder, a .zip, or shapes"
    ) from failure


def _targets(dataset: Any) -> NDArray[np.int64] | None:
    """(len(dataset),) labels; None when the targets are not class labels."""
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            break
    else:
        if not isinstance(dataset[0][1], int):
            return None
        values = [dataset[index][1] for index in range(len(dataset))]
    targets = np.asarray(values)
    return targets.astype(np.int64) if targets.ndim == 1 and targets.dtype.kind in "iu" else None


def _class_names(dataset: Any, count: int) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None) or range(count)
    return tuple(str(name[0]) if isinstance(name, tuple) else str(name) for name in names)
