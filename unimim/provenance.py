"""Where a number comes from, written beside it in a recipe: lr=paper(1.5e-3, "Table 11")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cited:
    """A value of a recipe and its source; on a mapping it covers everything inside that says nothing itself."""

    value: Any
    source: str


def paper(value: Any, place: str) -> Cited:
    """Stated in the paper of the method."""
    return Cited(value, f"paper: {place}")


def official(value: Any, place: str) -> Cited:
    """Read in the official code."""
    return Cited(value, f"official code: {place}")


def ours(value: Any, reason: str) -> Cited:
    """Our choice, and why."""
    return Cited(value, f"ours: {reason}")


def uncite(data: Any, path: str = "") -> tuple[Any, dict[str, str]]:
    """Plain data, and {dotted path: source} of every citation in it."""
    sources: dict[str, str] = {}
    if isinstance(data, Cited):
        sources[path] = data.source
        data = data.value
    if isinstance(data, Mapping):
        plain = {}
        for key, value in data.items():
            plain[key], inner = uncite(value, f"{path}.{key}" if path else str(key))
            sources.update(inner)
        return plain, sources
    if isinstance(data, list | tuple):
        pairs = [uncite(value, f"{path}.{number}") for number, value in enumerate(data)]
        return [value for value, _ in pairs], {**sources, **{k: v for _, inner in pairs for k, v in inner.items()}}
    return data, sources


def source_of(path: str, provenance: Mapping[str, str]) -> str:
    """The source of one leaf: its own citation or that of the nearest mapping around it."""
    while path:
        if path in provenance:
            return provenance[path]
        path = path.rpartition(".")[0]
    return "ours: default of the component"
