"""Image files in a folder or a zip, and a split of those in any store."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch

from .decode import EXTENSIONS, BadImage, decode
from .splits import Split, arrange, common_folder, digest

MAX_FILE = 2**29
"""Bytes: 64 megapixels take 384 MB at 16 bits a channel, so a larger file is a mistake or a trap."""


class Names:
    """Strings in one block of bytes: a list of a million would be copied into each forked worker, by reference counts."""

    def __init__(self, names: Iterable[str]) -> None:
        parts = [os.fsencode(name) for name in names]
        self.bytes, self.ends = b"".join(parts), np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self.bytes[self.ends[index] : self.ends[index + 1]])

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


class Store(Protocol):
    """Where image files lie, addressed by their place in `paths`."""

    @property
    def where(self) -> str:
        """The folder or the archive, for messages."""

    @property
    def paths(self) -> Names:
        """Paths of all images, relative, with slashes, sorted."""

    def tag(self, place: int) -> str:
        """A class number or name that lies beside the image; "" for none."""

    def locate(self, place: int) -> str:
        """The image's path, for messages."""

    def size(self, place: int) -> int:
        """Bytes."""

    def read(self, place: int) -> bytes: ...


class Folder:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        self.paths = Names(sorted(filter(is_image, self._walk())))

    def _walk(self) -> Iterator[str]:
        for folder, inside, names in os.walk(self.where, onerror=_unlistable, followlinks=True):
            for name in inside:
                _refuse_loop(Path(folder, name).absolute())
            inner = Path(folder).relative_to(self.where).as_posix()
            yield from (name if inner == "." else f"{inner}/{name}" for name in names)

    def tag(self, place: int) -> str:
        return ""

    def locate(self, place: int) -> str:
        return os.path.join(self.where, self.paths[place])

    def size(self, place: int) -> int:
        found = os.stat(self.locate(place))
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            raise OSError("not a file")
        return found.st_size

    def read(self, place: int) -> bytes:
        return Path(self.locate(place)).read_bytes()


def _refuse_loop(folder: Path) -> None:
    # Links to other places are welcome, but two that lead back would be walked in every order, without end.
    if folder.is_symlink() and any(folder.samefile(around) for around in folder.parents):
        raise ValueError(f"{folder}: a link to a folder around itself: remove it")


def _unlistable(error: OSError) -> None:
    # By default os.walk leaves such folders out, and a class would be missing without a word.
    raise ValueError(f"{error.filename}: cannot be listed ({error.strerror}): make it readable or remove it") from error


class Zip:
    """Members of a zip, opened anew in each process: a forked process shares its parent's file position."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._open: tuple[int, zipfile.ZipFile] | None = None
        try:
            self.paths = Names(sorted({*filter(is_image, self._archive.namelist())}))
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{path}: not a readable zip ({error}): copy it again") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    @property
    def _archive(self) -> zipfile.ZipFile:
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), zipfile.ZipFile(self.where)
        return self._open[1]

    def tag(self, place: int) -> str:
        return ""

    def locate(self, place: int) -> str:
        return f"{self.where}/{self.paths[place]}"

    def size(self, place: int) -> int:
        return self._archive.getinfo(self.paths[place]).file_size

    def read(self, place: int) -> bytes:
        return self._archive.read(self.paths[place])


class Files:
    """One split of a store: its images at `places`, named without the folder `base`, which they share."""

    def __init__(
        self, store: Store, base: str, classes: tuple[str, ...], places: Sequence[int], labels: Sequence[int]
    ) -> None:
        self.classes = classes
        self._store, self._base = store, base
        self._places, self._labels = np.array(places, np.int64), np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        return self._store.locate(int(self._places[index]))

    def read(self, index: int) -> torch.Tensor:
        place = int(self._places[index])
        return decode(read_bytes(self._store, place), self._store.locate(place))

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def labels(self) -> dict[int, int]:
        """{place in the store: label}."""
        return dict(zip(self._places.tolist(), self._labels.tolist(), strict=True))

    def fingerprint(self) -> str:
        paths, size = self._store.paths, self._store.size
        return digest(f"{paths[place].removeprefix(self._base)} {size(place)}" for place in self._places.tolist())


def read_bytes(store: Store, place: int) -> bytes:
    """An image file as it is. Raises BadImage when it cannot be had, or is too large for one image."""
    name = store.locate(place)
    try:
        size = store.size(place)
        if size > MAX_FILE:
            raise BadImage(name, f"{size / 2**30:.1f} GiB is too much for one image: remove it")
        return store.read(place)
    except BadImage:
        raise
    except Exception as error:  # besides OSError, zipfile raises six unrelated types
        raise BadImage(name, f"cannot be read ({type(error).__name__}: {error}): restore or remove it") from error


def open_files(store: Store, split: Split, hold_out: bool = True) -> Files:
    """One split of the images in a store. Raises ValueError when there are none, or they lie in no known way."""
    base, places = below_base(store)
    names = [store.paths[place].removeprefix(base) for place in places]
    classes, chosen, labels = arrange(names, [store.tag(place) for place in places], split, store.where, hold_out)
    return Files(store, base, classes, [places[number] for number in chosen], labels)


def below_base(store: Store) -> tuple[str, list[int]]:
    """The folder that holds the data in a store, ending in a slash or empty, and the places of the images below it."""
    paths = [*store.paths]
    if not paths:
        looked = " ".join(sorted(EXTENSIONS))
        raise ValueError(
            f"{store.where}: no images in it or its folders, looked for {looked}: check the path (tar files: shards:DIR)"
        )
    base = common_folder(paths)
    return base, [place for place, path in enumerate(paths) if path.startswith(base)]


def is_image(path: str) -> bool:
    """Whether a file's name ends like an image's, and neither it nor a folder of it is hidden."""
    parts = path.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in EXTENSIONS
