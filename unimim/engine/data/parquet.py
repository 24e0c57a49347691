"""Images in Parquet files; needs the package pyarrow (`pip install "unimim[hf]"`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .files import Names
from .splits import split_of_file

_IMAGES, _LABELS = ("image", "img", "bytes"), ("label", "labels", "fine_label", "cls", "class")


class Parquet:
    """A store of the rows of a .parquet file, or of all below a folder, by file and row.

    Columns: image (bytes, or a struct of bytes and path, as Hugging Face writes it; also img or bytes) and, if there,
    label (a number or name; also labels, fine_label, cls, class). A file in a folder train or val, or named after one
    (`train-00000-of-00004.parquet`), belongs to that split.

    Parquet compresses rows in groups, and to read one is to read its group. The last group is kept, so reading in order is
    fast and reading in random order is slow: for training on many groups, `unimim data shard` makes shards of them.
    """

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        pyarrow = _pyarrow()
        files = sorted(root.rglob("*.parquet")) if root.is_dir() else [root]
        if not files or not root.exists():
            raise ValueError(f"{root}: no .parquet file: check the path")
        self._files = [str(file) for file in files]
        paths, tags, groups, sizes = [], [], [], []
        for number, file in enumerate(files):
            try:
                with pyarrow.parquet.ParquetFile(file) as opened:
                    column, suffixes, labels = _columns(opened, str(file))
                    rows = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            except (OSError, pyarrow.ArrowException) as error:
                raise ValueError(f"{file}: not a whole Parquet file ({error}): copy it again") from error
            prefix = split_of_file(file.relative_to(root if root.is_dir() else root.parent).as_posix())
            count = sum(rows)
            paths += [f"{prefix}{file.stem}-{row:08d}{suffixes[row]}" for row in range(count)]
            tags += labels
            groups += [(number, group, row) for group, size in enumerate(rows) for row in range(size)]
            sizes += [file.stat().st_size // max(1, count)] * count
            self._column = column
        order = sorted(range(len(paths)), key=paths.__getitem__)
        self.paths, self._tags = Names(paths[row] for row in order), Names(tags[row] for row in order)
        self._rows = np.array([groups[row] for row in order], np.int64).reshape(-1, 3)
        self._sizes = np.array([sizes[row] for row in order], np.int64)
        self._held: tuple[tuple[int, int], Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}

    def tag(self, place: int) -> str:
        return self._tags[place]

    def locate(self, place: int) -> str:
        return f"{self.where}/{self.paths[place]}"

    def size(self, place: int) -> int:
        """The mean of its file: Parquet does not tell the sizes of rows."""
        return int(self._sizes[place])

    def read(self, place: int) -> bytes:
        file, group, row = self._rows[place].tolist()
        if self._held is None or self._held[0] != (file, group):
            with _pyarrow().parquet.ParquetFile(self._files[file]) as opened:
                table = opened.read_row_group(
                    group, columns=[self._column], use_threads=False
                )  # safe in forked workers
            self._held = (file, group), table.column(0)
        return content(self._held[1][row].as_py())


def content(value: object) -> bytes:
    """The bytes of an image's cell: bytes, or {bytes, path}."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise ValueError("the row holds no bytes of an image")
    return data


def suffix(path: object) -> str:
    """The ending that an image gets where its file's name is not known."""
    return PurePosixPath(os.fspath(path)).suffix.lower() or ".jpg" if isinstance(path, str) else ".jpg"


def pick(names: list[str], where: str) -> tuple[str, str | None]:
    """(column of images, column of labels or None)."""
    image = next((name for name in _IMAGES if name in names), None)
    if image is None:
        raise ValueError(
            f"{where}: no column {' or '.join(_IMAGES)}, only {', '.join(names)}: rename the column of images"
        )
    return image, next((name for name in _LABELS if name in names), None)


def _columns(opened: Any, where: str) -> tuple[str, list[str], list[str]]:
    """(column of images, an ending for each, a tag for each)."""
    image, label = pick(opened.schema_arrow.names, where)
    kind = opened.schema_arrow.field(image).type
    nested = kind.num_fields > 0 and kind.get_field_index("path") >= 0
    count = opened.metadata.num_rows
    suffixes = [".jpg"] * count
    if nested:
        cells = opened.read(columns=[f"{image}.path"], use_threads=False).column(0).to_pylist()
        suffixes = [suffix(cell["path"]) if cell else ".jpg" for cell in cells]
    if label is None:
        return image, suffixes, [""] * count
    labels = opened.read(columns=[label], use_threads=False).column(0).to_pylist()
    return image, suffixes, ["" if value is None or value == -1 else str(value) for value in labels]


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f'Parquet files need the package pyarrow ({error}): pip install "unimim[hf]"') from None
    return pyarrow
