"""Data sets of the Hugging Face hub; needs the package datasets (`pip install "unimim[hf]"`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .files import Names
from .parquet import content, pick
from .splits import ALL_SPLIT_FOLDERS


class Hub:
    """A store of the rows of a data set as `datasets.load_dataset` gives it: `name`, or a folder that it understands.

    Its splits are those of the data set that are called train, validation, ... ; its columns those of `parquet.Parquet`.
    Rows are read from the Arrow files that datasets keeps, in any order.
    """

    def __init__(self, name: str) -> None:
        self.where = f"hf:{name}"
        try:
            import datasets
        except ImportError as error:
            raise ValueError(f'{self.where} needs the package datasets ({error}): pip install "unimim[hf]"') from None
        try:
            loaded = datasets.load_dataset(name)
        except Exception as error:  # network, disk, licence, unknown name: datasets has no common type
            raise ValueError(
                f"{self.where} cannot be opened ({type(error).__name__}: {error}). Check the name; without a network, "
                "download it on a machine that has one, and give the folder as parquet:DIR"
            ) from error
        splits = [split for split in sorted(loaded) if split in ALL_SPLIT_FOLDERS or len(loaded) == 1]
        if not splits:
            raise ValueError(f"{self.where}: no split train or validation, only {', '.join(sorted(loaded))}")
        self._tables, tags, rows = [], [], []
        for number, split in enumerate(splits):
            table = loaded[split]
            self._column, label = pick(table.column_names, self.where)
            if isinstance(table.features[self._column], datasets.Image):
                table = table.cast_column(self._column, datasets.Image(decode=False))
            labels = [None] * len(table) if label is None else table[label][:]
            tags += ["" if value is None or value == -1 else str(value) for value in labels]
            rows += [(number, row) for row in range(len(table))]
            self._tables.append(table)
        prefixes = [f"{split}/" if split in ALL_SPLIT_FOLDERS else "" for split in splits]
        self.paths = Names(f"{prefixes[number]}{row:08d}.jpg" for number, row in rows)  # sorted, for splits are
        self._tags, self._rows = Names(tags), np.array(rows, np.int64).reshape(-1, 2)

    def tag(self, place: int) -> str:
        return self._tags[place]

    def locate(self, place: int) -> str:
        return f"{self.where}/{self.paths[place]}"

    def size(self, place: int) -> int:
        """0: the rows of a data set are not told by their sizes, but by their number."""
        return 0

    def read(self, place: int) -> bytes:
        table, row = self._rows[place].tolist()
        cell: Any = self._tables[table][row][self._column]
        if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path"):
            with open(cell["path"], "rb") as file:
                return file.read()
        return content(cell)
