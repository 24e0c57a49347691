"""Image sources: a list of images with names and labels, opened from one short string.

A source is map style, holds no position and no random state, and pickles, so data loader workers can each have it.
Classes are the sorted names of the class folders of all splits, so a label means the same in train and val.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast, get_args

import torch

from .files import Folder, Store, Zip, open_files
from .memory import in_memory
from .shapes import SPLITS, Shapes
from .shapes import Split as ShapesSplit
from .shards import Shards, index_path
from .splits import Split

__all__ = ["ImageSource", "Split", "in_memory", "open_source"]

FORMS = "a folder, a .zip or .tar, shards:DIR, parquet:PATH, hf:NAME, torchvision:NAME (such as torchvision:CIFAR10), or shapes"
"""What `open_source` takes, in a sentence."""


class ImageSource(Protocol):
    """Images 0 to len - 1 of one split, in sorted order of their names."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label; () when unlabelled."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's path, for messages ("file.zip/inner/path" in a zip)."""

    def read(self, index: int) -> torch.Tensor:
        """(3, H, W) uint8 RGB. Raises BadImage when this one image cannot be read."""

    def label(self, index: int) -> int:
        """Index into `classes`; -1 when unlabelled."""

    def fingerprint(self) -> str:
        """16 hex digits of a sha256 over the sorted names and sizes, or over the generator's parameters.

        Where the images lie does not count: a moved folder, and a zip of it, have the folder's fingerprint.
        """


def open_source(spec: str, split: Split = "train", hold_out: bool = True) -> ImageSource:
    """Open one split of a data set.

    Args:
        spec: one of

            - a folder `root/class/image`, `root/{train,val}/class/image` (validation, valid and test also count as
              val, in this order), or unlabelled images in place of the class folders;
            - an ADE20K tree, `root/{images,annotations}/{training,validation}/file`, of which the images are taken;
            - a .zip or a .tar of any of these;
            - `shards:DIR`, or DIR with an index: tar shards (see `shards.Shards`);
            - `parquet:PATH`: a .parquet file, or a folder of them (see `parquet.Parquet`);
            - `hf:NAME`: a data set of the Hugging Face hub, downloaded by the package datasets;
            - `torchvision:CIFAR10`, or another torchvision data set that takes a root, kept and downloaded in
              $UNIMIM_DATA or ~/.cache/unimim (in a distributed run, open it once before the other processes do);
            - `shapes`, or `shapes:size=64,train=20000,val=2000,seed=0`, drawn when read; `split=sketch` (rendition,
              cue-conflict) opens that split whatever `split` says.

            Folders that hold nothing but one folder are entered (a single class is no label). Hidden files and __MACOSX
            are passed over.
        split: "train" or "val". Where the data have no val folder, val is the tenth of the images whose name, hashed,
            is divisible by ten, and train the rest: adding images never moves one from train to val.
        hold_out: False for data that are only ever tested on: without a val folder, all images are val.

    Raises:
        ValueError: the spec has none of these forms, nothing is found, or the data cannot be downloaded.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}, but must be 'train' or 'val'")
    kind, _, rest = spec.partition(":")
    if kind == "shapes":
        return _open_shapes(rest, split)
    if kind == "torchvision":
        from .torchvision import open_torchvision

        return open_torchvision(rest, split, hold_out)
    return open_files(open_store(spec), split, hold_out)


def open_store(spec: str) -> Store:
    """The image files, of all splits, of a data set that has files. Raises ValueError for any other."""
    kind, _, rest = spec.partition(":")
    if kind == "hf":
        from .hub import Hub

        return Hub(rest)
    if kind == "parquet":
        from .parquet import Parquet

        return Parquet(Path(rest).expanduser())
    path = Path(rest if kind == "shards" else spec).expanduser()
    if path.is_dir():
        return Shards(path) if kind == "shards" or index_path(path).is_file() else Folder(path)
    if path.is_file() and path.suffix.lower() == ".tar":
        return Shards(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return Zip(path)
    raise ValueError(f"cannot open images from {spec!r}: give {FORMS}")


def _open_shapes(options: str, split: Split) -> Shapes:
    numbers = {"size": 64, "train": 20_000, "val": 2_000, "seed": 0}
    chosen: str = split
    for option in options.split(",") if options else ():
        key, _, value = option.partition("=")
        if key == "split":
            chosen = value
        elif key in numbers and value.isdecimal():
            numbers[key] = int(value)
        else:
            known = ", ".join(f"{name}={number}" for name, number in numbers.items())
            raise ValueError(f"shapes has no option {option!r}: use {known}, split={'|'.join(SPLITS)}")
    length = numbers["train" if chosen == "train" else "val"]
    return Shapes(cast(ShapesSplit, chosen), length, numbers["size"], numbers["seed"])
