"""What may change in a recipe while its run goes on: nothing, what the user names, or everything that only describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from .recipe import DESCRIPTION, full_path

FATAL = {
    "student": "the weights so far were learned in it",
    "terms.*.teacher": "the weights so far, and its copies or codes in the checkpoint, belong to it",
    "terms.*.head": "the weights so far were learned with it",
    "seed": "start values, the order of images, crops and masks follow from it",
    "batch": "the steps so far were counted in it",
}
"""{path, and all below it: why a checkpoint means nothing under another value}. Descriptions are free; every other path
may change if it is named."""


@dataclass(frozen=True)
class Change:
    """One leaf of a recipe that differs; None also stands for a field that is not there."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.path}: {self.before} -> {self.after}"

    @property
    def fatal(self) -> str:
        """Why a run cannot go on with it; empty if it can."""
        return next((why for pattern, why in FATAL.items() if _within(self.path, pattern)), "")


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Every leaf of two recipes' data that differs, descriptions aside."""

    def walk(old: Any, new: Any, path: str) -> Iterator[Change]:
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for key in dict.fromkeys([*old, *new]):
                yield from walk(old.get(key), new.get(key), f"{path}.{key}")
        elif old != new:
            yield Change(path, old, new)

    keys = [key for key in dict.fromkeys([*before, *after]) if key not in DESCRIPTION]
    return [change for key in keys for change in walk(before.get(key), after.get(key), key)]


def refused(changes: Sequence[Change], allowed: Sequence[str], recipe: Mapping[str, Any]) -> list[str]:
    """One line for each change that is fatal, or neither named by `allowed` nor below a path that is.

    allowed: dotted paths, written as in key=value. Raises ValueError if one is no field of the recipe.
    """
    named = [full_path(path, recipe) for path in allowed]
    for given, path in zip(allowed, named, strict=True):
        if not _has(recipe, path) and not any(_within(change.path, path) for change in changes):
            raise ValueError(f"--allow-changed: {given!r} is no field of this recipe; unimim show lists them")
    lines = []
    for change in changes:
        if change.fatal:
            lines.append(f"{change} (cannot change: {change.fatal})")
        elif not any(_within(change.path, path) for path in named):
            lines.append(f"{change} (train goes on with it if told --allow-changed {change.path})")
    return lines


def undone(recipe: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The data of the recipe before `changes` (as run.json records them, oldest first)."""
    data: dict[str, Any] = _copy(recipe)
    for change in reversed(changes):
        *parents, name = change["path"].split(".")
        node = data
        for part in parents:
            node = node.setdefault(part, {})
        if change["before"] is None:
            node.pop(name, None)
        else:
            node[name] = _copy(change["before"])
    return data


def _within(path: str, pattern: str) -> bool:
    """`path` is what `pattern` names (* is one part), or lies below it."""
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) >= len(wanted) and all(map(fnmatchcase, parts, wanted))


def _has(data: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return True


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value
