"""The list of images a run could not read, and the end of its patience with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .decode import BadImage

MAX_BAD = 0.05
"""Share of a data set's images that a run replaces; with more it is trained on something else than it says."""
_SHOWN = 10


def max_bad(num_images: int) -> int:
    """How many of a data set's images may be unreadable."""
    return int(MAX_BAD * num_images)


class TooManyBadImages(ValueError):
    """More than MAX_BAD of the images cannot be read: a disk, a copy or a path is broken rather than an image."""


class Quarantine:
    """The file that names every unreadable image of a run once: name, tab, reason, a line each.

    It is written by training processes, which learn from their samples what was replaced, and read back when it grows: so
    it counts the images of all processes and of the run before an interruption, and a continued run stops where an
    uninterrupted one does.
    """

    def __init__(self, path: Path, num_images: int) -> None:
        self.path, self.num_images = path, num_images
        self._names: set[str] = set()

    def add(self, bad: Mapping[int, BadImage]) -> None:
        """List what is new. Raises TooManyBadImages, with the first of the list, when there are more than MAX_BAD."""
        reasons = {_inline(error.name): _inline(error.reason) for error in bad.values()}
        if self._names.issuperset(reasons):
            return
        listed = self._read()
        new = {name: reason for name, reason in reasons.items() if name not in listed}
        with self.path.open("ab", buffering=0) as file:  # one write at the end: processes do not cut into each other
            file.write(os.fsencode("".join(f"{name}\t{reason}\n" for name, reason in new.items())))
        listed |= new
        self._names = {*listed}
        if len(listed) > max_bad(self.num_images):
            raise TooManyBadImages(self._verdict(listed))

    def _read(self) -> dict[str, str]:
        lines = os.fsdecode(self.path.read_bytes()).split("\n")[:-1] if self.path.exists() else []
        return {name: reason for name, _, reason in (line.partition("\t") for line in lines)}

    def _verdict(self, listed: Mapping[str, str]) -> str:
        share = f"{len(listed)} of {self.num_images} images cannot be read ({len(listed) / self.num_images:.1%})"
        shown = [f"{name}: {reason}" for name, reason in [*listed.items()][:_SHOWN]]
        shown += [f"and {len(listed) - _SHOWN} more in {self.path}"] if len(listed) > _SHOWN else []
        lines = "\n  ".join(shown)
        return (
            f"{share}, more than the {MAX_BAD:.0%} that a run replaces:\n  {lines}\n"
            f"Restore them, delete {self.path}, and start the same command again"
        )


def _inline(text: str) -> str:
    """A file's name may hold line breaks and tabs, which the list's lines must not."""
    return text.translate(dict.fromkeys(map(ord, "\t\n\r"), " "))
