"""Images with a class id for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import torch

from .decode import BadImage, decode_ids
from .files import Files, Store, open_files, read_bytes
from .shapes import SHAPES, Shapes
from .sources import ImageSource, open_source, open_store
from .splits import Split, common_folder, digest

LAYOUT = "root/images/{training,validation}/NAME.jpg with root/annotations/{training,validation}/NAME.png"
"""Where images and their class ids lie (ADE20K), in words."""


def open_annotated(spec: str, split: Split = "train") -> ImageSource:
    """One split of images (4, H, W) uint8, RGB and class id, from `shapes` (its options too), or from a folder, a zip or a
    tar in the layout of ADE20K. Folder names of splits are those of `open_source`.

    classes: names by id for `shapes` (the ground is 0); () for files, which do not tell.

    Raises ValueError when nothing is found, or an image has no annotation.
    """
    if spec.partition(":")[0] == "shapes":
        source = open_source(spec, split)
        assert isinstance(source, Shapes)
        return _Drawn(source)
    store = open_store(spec)
    base = common_folder([*store.paths]) if len(store.paths) else ""
    if not base.endswith("images/"):
        raise ValueError(f"{spec} has no images with class ids: the layout is {LAYOUT}")
    images = open_files(store, split)
    return _Annotated(store, images, _annotations(store, base, [*images.labels()]))


def _annotations(store: Store, base: str, places: Sequence[int]) -> list[int]:
    """Places of the annotations of the images at `places`."""
    place_of = {path: place for place, path in enumerate(store.paths)}
    folder = base.removesuffix("images/") + "annotations/"
    wanted = [folder + str(PurePosixPath(store.paths[p].removeprefix(base)).with_suffix(".png")) for p in places]
    missing = [path for path in wanted if path not in place_of]
    if missing:
        raise ValueError(f"{store.where}: {len(missing)} images have no class ids, the first {missing[0]}: add them")
    return [place_of[path] for path in wanted]


class _Annotated:
    """Image files with their annotation files."""

    classes: tuple[str, ...] = ()

    def __init__(self, store: Store, images: Files, annotations: Sequence[int]) -> None:
        self._store, self._images = store, images
        self._annotations = torch.tensor(annotations)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return self._images.name(index)

    def read(self, index: int) -> torch.Tensor:
        """(4, H, W) uint8: RGB and class id. BadImage when either file is damaged, or their sizes differ."""
        place = int(self._annotations[index])
        name, image = self._store.locate(place), self._images.read(index)
        ids = decode_ids(read_bytes(self._store, place), name)
        if ids.shape != image.shape[1:]:
            of_ids, of_image = (f"{width} x {height}" for height, width in (ids.shape, image.shape[1:]))
            raise BadImage(name, f"{of_ids} class ids for an image of {of_image} pixels: make them one size")
        return torch.cat([image, ids.unsqueeze(0)])

    def label(self, index: int) -> int:
        return -1

    def fingerprint(self) -> str:
        sizes = (f"{self._store.paths[place]} {self._store.size(place)}" for place in self._annotations.tolist())
        return digest([self._images.fingerprint(), *(line.rpartition("/")[2] for line in sizes)])


class _Drawn:
    """The figures of `shapes` on their ground."""

    classes = ("ground", *SHAPES)

    def __init__(self, source: Shapes) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def read(self, index: int) -> torch.Tensor:
        """(4, H, W) uint8: RGB and class id, 0 for the ground, c + 1 where a figure of class c is seen."""
        return torch.cat([self._source.read(index), self._source.mask(index).unsqueeze(0)])

    def label(self, index: int) -> int:
        return self._source.label(index)

    def fingerprint(self) -> str:
        return digest([self._source.fingerprint(), "masks"])
