"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from collections.abc import Callable

from unimim import hookimpl
from unimim.recipes import Data

from .recipes import RECIPES


@hookimpl
def unimim_students() -> dict[str, str]:
    return {"sim": "unimim_sim.student:SIM"}


@hookimpl
def unimim_heads() -> dict[str, str]:
    return {"sim_decoder": "unimim_sim.decoder:Decoder"}


@hookimpl
def unimim_losses() -> dict[str, str]:
    return {"unigrad": "unimim_sim.unigrad:UniGrad"}


@hookimpl
def unimim_recipes() -> dict[str, Callable[[], Data]]:
    return RECIPES


@hookimpl
def unimim_importers() -> dict[str, str]:
    return {"sim": "unimim_sim.importer:SIMImporter"}
