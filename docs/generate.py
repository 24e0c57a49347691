"""Writes docs/axes.md from the registries: python docs/generate.py."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

os.environ["UNIMIM_PLUGINS"] = "none"

from unimim import axes
from unimim.hooks import KINDS
from unimim.registry import plugins

PAGE = Path(__file__).with_name("axes.md")
CONTRACTS = (axes.Teacher, axes.Norm, axes.Student, axes.Head, axes.Loss, axes.MaskSampler, axes.Views)


def text() -> str:
    """The page: for each axis its contract, then every component of the core with its fields."""
    parts = ["# Axes\n\nGenerated from the registries by `python docs/generate.py`; plugins add to each.\n"]
    for kind, contract in zip(KINDS, CONTRACTS, strict=False):
        parts.append(f"## {kind.capitalize()}\n\n{inspect.getdoc(contract)}\n")
        for name in plugins()[kind]:
            component = plugins()[kind][name]
            parts.append(f"### `{name}`\n\n{inspect.getdoc(component)}\n")
            parts.append(_fields(component))
    return "\n".join(parts)


def _fields(component: type) -> str:
    config = component.Config  # type: ignore[attr-defined]
    own = vars(config).get("__doc__") or ""
    rows = [f"{inspect.cleandoc(own)}\n"] if own else []
    fields = {name: field for name, field in config.model_fields.items() if name != "name"}
    if fields:
        rows += ["| field | default |", "|---|---|"]
        rows += [f"| `{name}` | {_default(field)} |" for name, field in fields.items()]
        rows.append("")
    return "\n".join(rows)


def _default(field: object) -> str:
    required = field.is_required()  # type: ignore[attr-defined]
    return "required" if required else f"`{field.default!r}`"  # type: ignore[attr-defined]


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
