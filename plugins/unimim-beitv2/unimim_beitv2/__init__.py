"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unimim import Release, hookimpl

from .recipes import RECIPES
from .releases import RELEASES


@hookimpl
def unimim_teachers() -> Mapping[str, str]:
    return {"vqkd": "unimim_beitv2.vqkd:VQKD"}


@hookimpl
def unimim_heads() -> Mapping[str, str]:
    return {"aggregation": "unimim_beitv2.aggregation:Aggregation", "vqkd": "unimim_beitv2.quantizer:Quantizer"}


@hookimpl
def unimim_recipes() -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    return RECIPES


@hookimpl
def unimim_importers() -> Mapping[str, str]:
    return {"beitv2": "unimim_beitv2.importer:BEiTv2", "vqkd": "unimim_beitv2.importer:VQKD"}


@hookimpl
def unimim_releases() -> Mapping[str, Release]:
    return RELEASES
