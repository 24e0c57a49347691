"""Weights of teachers as their authors published them, as data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HUB = "hub:"
"""Begins the source of a file on the Hugging Face hub."""


@dataclass(frozen=True)
class Release:
    """One file that makes a teacher.

    about: what it is, in a line.  license: of the weights.  source: a url, or "hub:owner/repository/file".  file: its name
    in a folder.  use: what a recipe says to use it; {file} stands for the path.  pixels: side and filter of what it sees
    of a 224-pixel image in patches of 16, then the statistics it subtracts and divides by.  size: bytes, where published.
    sha256: its hexadecimal digits, or as many of the first as are published, 8 at least; "" for none.
    """

    about: str
    license: str
    source: str
    file: str
    use: str
    pixels: str
    size: int | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file or self.file.startswith(".") or self.file.endswith(".sha256"):
            raise ValueError(f"{self.file!r} is no plain name of a file")
        if not re.fullmatch(rf"https?://\S+|{HUB}[\w.-]+/[\w.-]+/[\w.-]+", self.source):
            raise ValueError(f"source {self.source!r} is neither a url nor {HUB}owner/repository/file")
        if not re.fullmatch(r"|[0-9a-f]{8,64}", self.sha256):
            raise ValueError(f"sha256 {self.sha256!r} is not 8 to 64 hexadecimal digits")
        if "{file}" not in self.use:
            raise ValueError(f"use {self.use!r} does not say where {{file}} goes")

    def words(self, path: Path) -> list[str]:
        """The assignments of a recipe that uses the file at `path`."""
        return [word.replace("{file}", str(path)) for word in self.use.split()]
