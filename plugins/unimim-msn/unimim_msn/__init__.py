"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from collections.abc import Callable

from unimim import hookimpl
from unimim.recipes import Data

from .recipes import RECIPES


@hookimpl
def unimim_heads() -> dict[str, str]:
    return {"msn": "unimim_msn.head:Projector"}


@hookimpl
def unimim_losses() -> dict[str, str]:
    return {"msn": "unimim_msn.loss:MSN"}


@hookimpl
def unimim_recipes() -> dict[str, Callable[[], Data]]:
    return RECIPES


@hookimpl
def unimim_importers() -> dict[str, str]:
    return {"msn": "unimim_msn.importer:MSNImporter"}
