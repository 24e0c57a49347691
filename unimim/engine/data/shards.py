"""Image files in tar shards: read by their place, listed in one index, and written."""

from __future__ import annotations

import io
import json
import os
import posixpath
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from .decode import BadImage, decode
from .files import Names, Store, below_base, is_image, open_files, read_bytes
from .splits import Split, split_of_file

_VERSION = 1
_MAX_TAG = 2**20  # bytes of a .cls or .json
_MAX_OPEN = 128  # shards held open by a process


class Shards:
    """The images in a .tar, or in all .tar files below a folder. Nothing is ever extracted: a member's name is a name.

    Members are laid out as in a folder (`class/image`, `train/class/image`, ...), or as WebDataset does: `KEY.jpg` beside
    `KEY.cls` (a class number or name) or `KEY.json` (one of its keys label, cls, class). A shard in a folder train or val,
    or named after one (`train-0001.tar`), belongs to that split.

    Places come from an index beside the shards, index.npz. Where it is missing, or a shard is new, gone or of another size,
    the shards are listed again, and the index is written if the folder allows it. An image is read by its byte range, so
    access is random and order, resume and fingerprint are those of the same files in a folder.

    Raises ValueError when a shard is damaged or cut.
    """

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        self._handles: dict[int, int] = {}
        shards = sorted(root.rglob("*.tar")) if root.is_dir() else [root]
        if not shards:
            raise ValueError(f"{root}: no .tar files in it or its folders: check the path")
        self._root = root if root.is_dir() else root.parent
        named = [shard.relative_to(self._root).as_posix() for shard in shards]
        sizes = [shard.stat().st_size for shard in shards]
        index = _load(index_path(root), named, sizes)
        if index is None:
            index = _list(self._root, named, sizes)
            with suppress(OSError):  # a folder that is not ours to write: the index stays in memory
                index.save(index_path(root))
        self.paths, self._tags, self._shards = index.paths, index.tags, named
        self._shard, self._offset, self._size = index.shard, index.offset, index.size

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}

    def __del__(self) -> None:
        for handle in self.__dict__.get("_handles", {}).values():
            os.close(handle)

    def tag(self, place: int) -> str:
        return self._tags[place]

    def locate(self, place: int) -> str:
        return f"{self._root / self._shards[self._shard[place]]}/{self.paths[place]}"

    def size(self, place: int) -> int:
        return int(self._size[place])

    def read(self, place: int) -> bytes:
        wanted = self.size(place)
        data = os.pread(self._handle(int(self._shard[place])), wanted, int(self._offset[place]))
        if len(data) != wanted:
            raise OSError(f"the shard ends {wanted - len(data)} bytes too early")
        return data

    def _handle(self, shard: int) -> int:
        """pread has no position, so processes may share a handle after a fork."""
        if shard not in self._handles:
            if len(self._handles) >= _MAX_OPEN:
                os.close(self._handles.pop(next(iter(self._handles))))
            self._handles[shard] = os.open(self._root / self._shards[shard], os.O_RDONLY)
        return self._handles[shard]


def index_path(root: Path) -> Path:
    """Where the index of a folder of shards, or of one .tar, is kept."""
    return root / "index.npz" if root.is_dir() else root.with_name(f"{root.name}.index.npz")


@dataclass(frozen=True)
class _Index:
    """Every image of the shards, sorted by path: where its bytes lie."""

    shards: list[str]
    shard_sizes: list[int]
    paths: Names
    tags: Names
    shard: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """As a whole or not at all."""
        hidden = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        header = json.dumps({"version": _VERSION, "shards": self.shards, "sizes": self.shard_sizes})
        try:
            with hidden.open("wb") as file:
                np.savez(
                    file,
                    header=np.frombuffer(header.encode(), np.uint8),
                    paths=np.frombuffer(self.paths.bytes, np.uint8),
                    path_ends=self.paths.ends,
                    tags=np.frombuffer(self.tags.bytes, np.uint8),
                    tag_ends=self.tags.ends,
                    places=np.stack([self.shard, self.offset, self.size]),
                )
                file.flush()
                os.fsync(file.fileno())
            hidden.replace(path)
        finally:
            hidden.unlink(missing_ok=True)


def _load(path: Path, shards: list[str], sizes: list[int]) -> _Index | None:
    """The index, if there is one of these very shards."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            header = json.loads(data["header"].tobytes())
            if header != {"version": _VERSION, "shards": shards, "sizes": sizes}:
                return None
            paths, tags = (_names(data[f"{key}s"], data[f"{key}_ends"]) for key in ("path", "tag"))
            return _Index(shards, sizes, paths, tags, *data["places"])
    except Exception:  # missing, cut or damaged, for which numpy and zipfile raise many types: it is made again
        return None


def _names(data: NDArray[np.uint8], ends: NDArray[np.int64]) -> Names:
    names = Names(())
    names.bytes, names.ends = data.tobytes(), ends
    return names


def _list(root: Path, shards: list[str], sizes: list[int]) -> _Index:
    """Read the headers of all members."""
    found = [
        (path, tag, number, offset, size)
        for number, shard in enumerate(shards)
        for path, tag, offset, size in _members(root / shard, split_of_file(shard))
    ]
    found.sort()
    paths, tags = Names(row[0] for row in found), Names(row[1] for row in found)
    places = np.array([row[2:] for row in found], np.int64).reshape(-1, 3)
    return _Index(shards, sizes, paths, tags, *places.T.copy())


def _members(shard: Path, split: str) -> Iterator[tuple[str, str, int, int]]:
    """(path, tag, offset, size) of the images in one shard."""
    images, tags = [], {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                # Neither ".." nor a leading slash is left, so that the name is harmless wherever it is used later.
                path = posixpath.normpath(f"/{member.name}").lstrip("/")
                path = path if path.startswith(split) else split + path
                if not member.isreg() or member.issparse():
                    continue
                if is_image(path):
                    images.append((path, member.offset_data, member.size))
                elif path.endswith((".cls", ".json")) and member.size <= _MAX_TAG:
                    file = tar.extractfile(member)
                    tags[_key(path)] = _tag(path, file.read() if file else b"")
            end = tar.offset
        with shard.open("rb") as whole:  # at a damaged header tarfile ends as if all was well
            whole.seek(end)
            if whole.read(512) != bytes(512):
                raise tarfile.ReadError(f"no header and no end at byte {end}")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{shard}: not a whole tar file ({error}): copy it again") from error
    for path, offset, size in images:
        yield path, tags.get(_key(path), ""), offset, size


def _key(path: str) -> str:
    """What the files of one sample share: all up to the first dot of the name, as WebDataset has it."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _tag(path: str, data: bytes) -> str:
    if path.endswith(".cls"):
        return data.decode().strip()
    value = json.loads(data)
    named = [value[key] for key in ("label", "cls", "class") if key in value] if isinstance(value, dict) else []
    return str(named[0]) if named and isinstance(named[0], int | str) else ""


@dataclass(frozen=True)
class Written:
    """How many images went into how many shards, and what was left out."""

    num_images: int
    num_shards: int
    left_out: tuple[BadImage, ...]


def write_shards(store: Store, out: Path, per_shard: int = 1000) -> Written:
    """Copy every image file of a store, byte by byte, into tar shards with their index.

    Paths stay, so that splits, classes and fingerprint stay; a labelled image gets its class number as KEY.cls for readers
    of WebDataset. Each image is decoded once; those that cannot be are left out and listed in left_out.txt. The folder
    appears when it is whole; what an interrupted call leaves behind is a hidden folder, which the next one replaces.

    Raises ValueError when `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists: give a new folder, or remove it")
    base, places = below_base(store)
    labels: dict[int, int] = {}
    for split in get_args(Split):
        with suppress(ValueError):  # no such split: without it, its images are the other's
            files = open_files(store, cast(Split, split))
            labels.update(files.labels())
    hidden = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    shards = range(0, len(places), per_shard)
    left_out = [
        bad
        for number, first in enumerate(shards)
        for bad in _write(hidden / f"{number:05d}.tar", store, base, places[first : first + per_shard], labels)
    ]
    if len(left_out) == len(places):
        raise ValueError(f"{store.where}: not one of its {len(places)} images can be read, e.g. {left_out[0]}")
    if left_out:
        lines = "".join(f"{bad.name}\t{bad.reason}\n" for bad in left_out)
        (hidden / "left_out.txt").write_bytes(os.fsencode(lines))
    Shards(hidden)  # writes the index
    if out.exists():
        out.rmdir()
    hidden.rename(out)
    return Written(len(places) - len(left_out), len(shards), tuple(left_out))


def _write(path: Path, store: Store, base: str, places: list[int], labels: dict[int, int]) -> Iterator[BadImage]:
    """One shard; yields what it leaves out."""
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for place in places:
                try:
                    data = read_bytes(store, place)
                    decode(data, store.locate(place))
                except BadImage as bad:
                    yield bad
                    continue
                name = store.paths[place].removeprefix(base)
                members = [(name, data)]
                if labels.get(place, -1) >= 0:
                    members.append((f"{_key(name)}.cls", str(labels[place]).encode()))
                for member, content in members:
                    entry = tarfile.TarInfo(member)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        file.flush()
        os.fsync(file.fileno())
