"""Ge2-AE: the row "Ge2-AE (Liu et al., 2022a)" of the paper's Table 1. The student and the decoders are the core's."""

from collections.abc import Callable, Mapping
from typing import Any

from unimim import hookimpl

from .recipes import RECIPES


@hookimpl
def unimim_teachers() -> dict[str, str]:
    return {"frequency": "unimim_ge2ae.frequency:Frequency"}


@hookimpl
def unimim_heads() -> dict[str, str]:
    return {"spectrum": "unimim_ge2ae.head:Spectrum"}


@hookimpl
def unimim_losses() -> dict[str, str]:
    return {"focal_frequency": "unimim_ge2ae.loss:FocalFrequency"}


@hookimpl
def unimim_recipes() -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    return RECIPES
