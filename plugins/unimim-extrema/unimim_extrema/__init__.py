"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from collections.abc import Callable

from unimim import hookimpl
from unimim.recipes import Data

from .recipes import RECIPES


@hookimpl
def unimim_students() -> dict[str, str]:
    return {"extrema": "unimim_extrema.student:ExtreMA"}


@hookimpl
def unimim_heads() -> dict[str, str]:
    return {"extrema": "unimim_extrema.head:ProjectorPredictor"}


@hookimpl
def unimim_recipes() -> dict[str, Callable[[], Data]]:
    return RECIPES


@hookimpl
def unimim_importers() -> dict[str, str]:
    return {"extrema": "unimim_extrema.importer:ExtreMAImporter"}
