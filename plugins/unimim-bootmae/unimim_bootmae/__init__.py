"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from collections.abc import Callable

from unimim import hookimpl
from unimim.recipes import Data

from .recipes import RECIPES


@hookimpl
def unimim_norms() -> dict[str, str]:
    return {"layer_by_channel": "unimim_bootmae.norm:LayerByChannel"}


@hookimpl
def unimim_heads() -> dict[str, str]:
    return {"injected_decoder": "unimim_bootmae.decoder:InjectedDecoder"}


@hookimpl
def unimim_losses() -> dict[str, str]:
    return {"layer_l2": "unimim_bootmae.loss:LayerL2"}


@hookimpl
def unimim_masks() -> dict[str, str]:
    return {"rolled_block": "unimim_bootmae.mask:RolledBlock"}


@hookimpl
def unimim_recipes() -> dict[str, Callable[[], Data]]:
    return RECIPES


@hookimpl
def unimim_importers() -> dict[str, str]:
    return {"bootmae": "unimim_bootmae.importer:BootMAE"}
