"""Image sources: a list of images with names and labels, opened from one short string.

A source is map style, holds no position and no random state, and pickles, so data loader workers can each have it.
Classes are the sorted names of the class folders of all splits, so a label means the same in train and val.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import os
import stat
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .decode import EXTENSIONS, BadImage, decode, from_pillow
from .shapes import SPLITS, Shapes
from .shapes import Split as ShapesSplit

Split = Literal["train", "val"]

MAX_MEMORY = 4 * 2**30
"""Bytes of decoded pixels that `in_memory` accepts."""

_MAX_FILE = 2**29  # bytes: 64 megapixels take 384 MB at 16 bits a channel, so a larger file is a mistake or a trap
_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "test"),
}
_ALL_SPLIT_FOLDERS = {name for names in _SPLIT_FOLDERS.values() for name in names}


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


def open_source(spec: str, split: Split = "train") -> ImageSource:
    """Open one split of a data set.

    Args:
        spec: one of

            - a folder `root/class/image`, `root/{train,val}/class/image` (validation, valid and test also count as
              val, in this order), or unlabelled images in place of the class folders;
            - an ADE20K tree, `root/{images,annotations}/{training,validation}/file`, of which the images are taken;
            - a .zip of any of these;
            - `torchvision:CIFAR10`, or another torchvision data set that takes a root, kept and downloaded in
              $UNIMIM_DATA or ~/.cache/unimim (in a distributed run, open it once before the other processes do);
            - `shapes`, or `shapes:size=64,train=20000,val=2000,seed=0`, drawn when read; `split=sketch` (rendition,
              cue-conflict) opens that split whatever `split` says.

            Folders that hold nothing but one folder are entered (a single class is no label). Hidden files and __MACOSX
            are passed over.
        split: "train" or "val". Where the data have no val folder, val is the tenth of the images whose name, hashed,
            is divisible by ten, and train the rest: adding images never moves one from train to val.

    Raises:
        ValueError: the spec has none of these forms, nothing is found, or the data cannot be downloaded.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}, but must be 'train' or 'val'")
    kind, _, rest = spec.partition(":")
    if kind == "shapes":
        return _open_shapes(rest, split)
    if kind == "torchvision":
        return _open_torchvision(rest, split)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _open_files(_Folder(path), split)
    if path.is_file() and path.suffix.lower() == ".zip":
        return _open_files(_Zip(path), split)
    raise ValueError(
        f"cannot open images from {spec!r}: give an existing folder, an existing .zip file, "
        "torchvision:NAME (such as torchvision:CIFAR10), or shapes"
    )


def in_memory(source: ImageSource) -> ImageSource:
    """The same source, decoded once and for all: for small images, which would otherwise be decoded in every epoch.

    Bad images stay bad: they raise BadImage when read. Workers share the memory.

    Raises:
        ValueError: the pixels take more than MAX_MEMORY bytes (estimated on every n-th image before all are read).
    """
    count = len(source)
    sample = [_decoded_size(source, index) for index in range(0, count, max(1, count // 64))]
    _check_memory(round(sum(sample) / len(sample) * count))
    return _Memory(source)


# ---- files in a folder or a zip ----


class _Store(Protocol):
    """Where files lie. Paths are relative, with slashes."""

    def paths(self) -> Iterable[str]: ...
    def locate(self, path: str) -> str: ...
    def size(self, path: str) -> int: ...
    def read(self, path: str) -> bytes: ...


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def paths(self) -> Iterable[str]:
        for folder, _, names in os.walk(self._root, onerror=_unlistable, followlinks=True):
            inner = Path(folder).relative_to(self._root).as_posix()
            yield from (name if inner == "." else f"{inner}/{name}" for name in names)

    def locate(self, path: str) -> str:
        return str(self._root / path)

    def size(self, path: str) -> int:
        found = (self._root / path).stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            raise OSError("not a file")
        return found.st_size

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()


def _unlistable(error: OSError) -> None:
    # By default os.walk leaves such folders out, and a class would be missing without a word.
    raise ValueError(f"{error.filename}: cannot be listed ({error.strerror}): make it readable or remove it") from error


class _Zip:
    """A zip, opened anew in each process: a forked process shares its parent's file position."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_open": None}

    @property
    def _archive(self) -> zipfile.ZipFile:
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), zipfile.ZipFile(self._path)
        return self._open[1]

    def paths(self) -> Iterable[str]:
        try:
            return set(self._archive.namelist())
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{self._path}: not a readable zip ({error}): copy it again") from error

    def locate(self, path: str) -> str:
        return f"{self._path}/{path}"

    def size(self, path: str) -> int:
        return self._archive.getinfo(path).file_size

    def read(self, path: str) -> bytes:
        return self._archive.read(path)


class _Names:
    """Strings in one block of bytes: a list of a million would be copied into each forked worker, by reference counts."""

    def __init__(self, names: Sequence[str]) -> None:
        parts = [os.fsencode(name) for name in names]
        self._bytes = b"".join(parts)
        self._ends = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])


class _Files:
    """The images of one split in a store, all below the folder `base` (ends in a slash, or is empty)."""

    def __init__(self, store: _Store, base: str, classes: tuple[str, ...], names: list[str], labels: list[int]) -> None:
        self.classes = classes
        self._store, self._base = store, base
        self._names, self._labels = _Names(names), np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._store.locate(self._base + self._names[index])

    def read(self, index: int) -> torch.Tensor:
        path = self._base + self._names[index]
        name = self._store.locate(path)
        try:
            size = self._store.size(path)
            if size > _MAX_FILE:
                raise BadImage(name, f"{size / 2**30:.1f} GiB is too much for one image: remove it")
            data = self._store.read(path)
        except BadImage:
            raise
        except Exception as error:  # besides OSError, zipfile raises six unrelated types
            raise BadImage(name, f"cannot be read ({type(error).__name__}: {error}): restore or remove it") from error
        return decode(data, name)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def fingerprint(self) -> str:
        names = (self._names[index] for index in range(len(self)))
        return _digest(f"{name} {self._store.size(self._base + name)}" for name in names)


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(os.fsencode(line + "\n"))
    return digest.hexdigest()[:16]


def _open_files(store: _Folder | _Zip, split: Split) -> ImageSource:
    where = store.locate("").rstrip("/")
    paths = sorted(path for path in store.paths() if _is_image(path))
    if not paths:
        looked = " ".join(sorted(EXTENSIONS))
        raise ValueError(f"{where}: no images in it or its folders, looked for {looked}: check the path")
    base = _common_folder(paths)
    if {_top(path.removeprefix(base)) for path in paths} == {"images", "annotations"}:
        base += "images/"
        paths = [path for path in paths if path.startswith(base)]
    return _Files(store, base, *_arrange([path.removeprefix(base) for path in paths], split, where))


def _is_image(path: str) -> bool:
    parts = path.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in EXTENSIONS


def _common_folder(paths: list[str]) -> str:
    """The folders that all paths (sorted) share, up to a split's folder: they wrap the data and say nothing."""
    base = ""
    for first, last in zip(paths[0].split("/")[:-1], paths[-1].split("/")[:-1], strict=False):
        if first != last or first in _ALL_SPLIT_FOLDERS:
            break
        base += f"{first}/"
    return base


def _arrange(names: list[str], split: Split, where: str) -> tuple[tuple[str, ...], list[str], list[int]]:
    """(classes, names, labels) of a split, from the sorted names of all images."""
    tops = {_top(name) for name in names}
    folders = {key: next((top for top in options if top in tops), None) for key, options in _SPLIT_FOLDERS.items()}
    depth = 0
    own, related = names, names
    # Beside other folders, a lone "train" or "test" is a class.
    if tops <= _ALL_SPLIT_FOLDERS or all(folders.values()):
        depth = 1
        folder = folders[split] or folders["train"]
        if folder is None:
            raise ValueError(f"{where}: has {folders['val']}/ but no train/: add it, or give {folders['val']}/ itself")
        own = [name for name in names if name.startswith(f"{folder}/")]
        related = [name for name in names if _top(name) in folders.values()]
    classes = tuple(sorted({_class_of(name, depth) for name in related} - {""}))
    own_classes = {_class_of(name, depth) for name in own}
    if "" in own_classes and len(own_classes) > 1:
        loose = next(name for name in own if not _class_of(name, depth))
        raise ValueError(f"{where}: {loose} lies beside the class folders: move it into one, or out of the data set")
    if depth == 0 or folders["val"] is None:
        own = [name for name in own if _is_held_out(name) == (split == "val")]
    if not own:
        raise ValueError(f"{where}: too few images to hold out a tenth ({split} is empty): add images or a val folder")
    if own_classes == {""}:
        return (), own, [-1] * len(own)
    label_of = {name: label for label, name in enumerate(classes)}
    return classes, own, [label_of[_class_of(name, depth)] for name in own]


def _top(name: str) -> str:
    """The outermost folder; "" for an image outside of any."""
    return name.partition("/")[0] if "/" in name else ""


def _class_of(name: str, depth: int) -> str:
    """The folder below `depth` folders that holds the image; "" when the image lies right there."""
    parts = name.split("/")[depth:-1]
    return parts[0] if parts else ""


def _is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) % 10 == 0


# ---- torchvision ----


class _Torchvision:
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
        return _digest([f"{self._title} {len(self._dataset)}", *map(str, self._chosen)])


def _open_torchvision(name: str, split: Split) -> ImageSource:
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
        names = (*_SPLIT_FOLDERS[split], "trainval") if split == "train" else _SPLIT_FOLDERS[split]
        choices = [{"split": choice} for choice in names]
    title = f"torchvision:{name}"
    dataset = _construct(kind, choices, {"download": True} if "download" in parameters else {}, title)
    chosen: Sequence[int] = range(len(dataset))
    if choices == [{}]:
        chosen = [index for index in chosen if _is_held_out(str(index)) == (split == "val")]
    else:
        title += f"/{split}"
    return _Torchvision(dataset, title, chosen)


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


# ---- shapes ----


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


# ---- memory ----


class _Memory:
    """All images of a source one after the other in one tensor, which workers share."""

    def __init__(self, source: ImageSource) -> None:
        self.classes = source.classes
        self._source = source
        self._bad: dict[int, str] = {}
        self._sides = np.zeros((len(source), 2), np.int64)
        pixels = bytearray()
        for index in range(len(source)):
            try:
                image = source.read(index)
            except BadImage as bad:
                self._bad[index] = bad.reason
                continue
            self._sides[index] = image.shape[1:]
            pixels += image.numpy().tobytes()
            _check_memory(len(pixels))
        self._ends = np.cumsum([0, *3 * self._sides.prod(1)])
        self._pixels = torch.frombuffer(pixels or bytearray(1), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def read(self, index: int) -> torch.Tensor:
        if index in self._bad:
            raise BadImage(self.name(index), self._bad[index])
        height, width = self._sides[index].tolist()
        return self._pixels[self._ends[index] : self._ends[index + 1]].view(3, height, width).clone()

    def label(self, index: int) -> int:
        return self._source.label(index)

    def fingerprint(self) -> str:
        return self._source.fingerprint()


def _decoded_size(source: ImageSource, index: int) -> int:
    try:
        return source.read(index).numel()
    except BadImage:
        return 0


def _check_memory(size: int) -> None:
    if size > MAX_MEMORY:
        raise ValueError(
            f"the decoded images take about {size / 2**30:.1f} GiB, more than the {MAX_MEMORY / 2**30:.0f} GiB that are "
            "kept in memory: read them from disk instead, or store them smaller"
        )
