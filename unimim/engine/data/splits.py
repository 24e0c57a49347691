"""Which of the images belong to train and to val, and what their labels are, by their names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Literal

Split = Literal["train", "val"]

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "test"),
}
ALL_SPLIT_FOLDERS = {name for names in SPLIT_FOLDERS.values() for name in names}

Arranged = tuple[tuple[str, ...], list[int], list[int]]
"""Classes; places of a split's images among all; their labels, -1 when unlabelled."""


def arrange(names: Sequence[str], tags: Sequence[str], split: Split, where: str, hold_out: bool = True) -> Arranged:
    """One split of the images with these names (sorted, with slashes).

    tags: a class number or name beside each image ("" for none), which counts where no class folders are.
    hold_out: without a val folder, val is a tenth of the images; else both splits are all of them.
    """
    tops = {_top(name) for name in names}
    folders = {key: next((top for top in options if top in tops), None) for key, options in SPLIT_FOLDERS.items()}
    depth = 0
    own = related = [*range(len(names))]
    # Beside other folders, a lone "train" or "test" is a class.
    if tops <= ALL_SPLIT_FOLDERS or all(folders.values()):
        depth = 1
        folder = folders[split] or folders["train"]
        if folder is None:
            raise ValueError(f"{where}: has {folders['val']}/ but no train/: add it, or give {folders['val']}/ itself")
        related = [place for place in own if _top(names[place]) in folders.values()]
        own = [place for place in own if _top(names[place]) == folder]
    folder_of = {place: _class_of(names[place], depth) for place in related}
    mixed = {folder_of[place] for place in own}
    if "" in mixed and len(mixed) > 1:
        loose = next(names[place] for place in own if not folder_of[place])
        raise ValueError(f"{where}: {loose} lies beside the class folders: move it into one, or out of the data set")
    if hold_out and (depth == 0 or folders["val"] is None):
        own = [place for place in own if is_held_out(names[place]) == (split == "val")]
    if not own:
        raise ValueError(f"{where}: too few images to hold out a tenth ({split} is empty): add images or a val folder")
    if mixed != {""}:
        classes = tuple(sorted({*folder_of.values()} - {""}))
        return classes, own, _numbers(classes, [folder_of[place] for place in own])
    classes = _tagged({tags[place] for place in related} - {""})
    untagged = next((names[place] for place in own if not tags[place]), None)
    if not classes or untagged is None:
        return classes, own, _numbers(classes, [tags[place] for place in own]) if classes else [-1] * len(own)
    raise ValueError(f"{where}: {untagged} has no class beside it, others have: add its .cls, or leave all of them out")


def _tagged(tags: set[str]) -> tuple[str, ...]:
    """Class names of tags: the numbers up to the largest, if all are class numbers."""
    if tags and all(tag.isdecimal() and len(tag) <= 5 for tag in tags):
        return tuple(map(str, range(max(map(int, tags)) + 1)))
    return tuple(sorted(tags))


def _numbers(classes: tuple[str, ...], names: Iterable[str]) -> list[int]:
    number_of = {name: number for number, name in enumerate(classes)}
    return [number_of[name] for name in names]


def common_folder(paths: Sequence[str]) -> str:
    """The folders that all paths (sorted) share, up to a split's folder: they wrap the data and say nothing."""
    base = ""
    for first, last in zip(paths[0].split("/")[:-1], paths[-1].split("/")[:-1], strict=False):
        if first != last or first in ALL_SPLIT_FOLDERS:
            break
        base += f"{first}/"
    if {_top(path.removeprefix(base)) for path in paths} == {"images", "annotations"}:
        base += "images/"
    return base


def split_of_file(path: str) -> str:
    """The split's folder, with a slash, that a file of many images lies in or is named after (train-0001.tar); else ""."""
    folder, _, name = path.rpartition("/")
    words = [*folder.split("/"), *name.partition(".")[0].replace("_", "-").split("-")]
    return next((f"{word}/" for word in words if word in ALL_SPLIT_FOLDERS), "")


def is_held_out(name: str) -> bool:
    """True for a tenth of all names."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) % 10 == 0


def digest(lines: Iterable[str]) -> str:
    """16 hex digits of the lines' sha256."""
    found = hashlib.sha256()
    for line in lines:
        found.update(os.fsencode(line + "\n"))
    return found.hexdigest()[:16]


def _top(name: str) -> str:
    """The outermost folder; "" for an image outside of any."""
    return name.partition("/")[0] if "/" in name else ""


def _class_of(name: str, depth: int) -> str:
    """The folder below `depth` folders that holds the image; "" when the image lies right there."""
    parts = name.split("/")[depth:-1]
    return parts[0] if parts else ""
