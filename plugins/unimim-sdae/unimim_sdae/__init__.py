"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from collections.abc import Callable, Mapping
from typing import Any

from unimim import hookimpl

from .recipes import RECIPES


@hookimpl
def unimim_teachers() -> dict[str, str]:
    return {"sdae": "unimim_sdae.teacher:SdAE"}


@hookimpl
def unimim_losses() -> dict[str, str]:
    return {"token_cosine": "unimim_sdae.token_cosine:TokenCosine"}


@hookimpl
def unimim_masks() -> dict[str, str]:
    return {"folded": "unimim_sdae.folded:Folded"}


@hookimpl
def unimim_recipes() -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    return RECIPES


@hookimpl
def unimim_importers() -> dict[str, str]:
    return {"sdae": "unimim_sdae.importer:SdAE"}
