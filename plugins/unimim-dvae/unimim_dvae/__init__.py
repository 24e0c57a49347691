"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unimim import hookimpl

from .recipes import RECIPES


@hookimpl
def unimim_students() -> Mapping[str, str]:
    return {"dvae_encoder": "unimim_dvae.encoder:DVaeEncoder"}


@hookimpl
def unimim_heads() -> Mapping[str, str]:
    return {"gumbel": "unimim_dvae.gumbel:Gumbel"}


@hookimpl
def unimim_recipes() -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    return RECIPES
