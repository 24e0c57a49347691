"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unimim import hookimpl

from .recipes import RECIPES


@hookimpl
def unimim_heads() -> Mapping[str, str]:
    return {"projector": "unimim_conmim.projector:Projector"}


@hookimpl
def unimim_recipes() -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    return RECIPES


@hookimpl
def unimim_importers() -> Mapping[str, str]:
    return {"conmim": "unimim_conmim.importer:ConMIM"}
