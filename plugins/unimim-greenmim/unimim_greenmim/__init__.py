"""GreenMIM: the row "GreenMIM (Huang et al., 2022)" of the paper's Table 1. The student is the core's `swin`."""

from collections.abc import Callable, Mapping
from typing import Any

from unimim import hookimpl

from .recipes import RECIPES


@hookimpl
def unimim_heads() -> dict[str, str]:
    return {"greenmim_decoder": "unimim_greenmim.decoder:GreenMIMDecoder"}


@hookimpl
def unimim_recipes() -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    return RECIPES


@hookimpl
def unimim_importers() -> dict[str, str]:
    return {
        "greenmim": "unimim_greenmim.importer:GreenMIM",
        "greenmim-v1": "unimim_greenmim.importer:GreenMIMv1",
    }
