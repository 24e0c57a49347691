"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from collections.abc import Callable

from unimim import hookimpl
from unimim.recipes import Data

from .recipes import RECIPES


@hookimpl
def unimim_students() -> dict[str, str]:
    return {"cae": "unimim_cae.student:CAE"}


@hookimpl
def unimim_teachers() -> dict[str, str]:
    return {"cae_latent": "unimim_cae.latent:LatentTeacher"}


@hookimpl
def unimim_heads() -> dict[str, str]:
    return {"cae_decoder": "unimim_cae.decoder:Decoder", "cae_latent": "unimim_cae.latent:LatentHead"}


@hookimpl
def unimim_recipes() -> dict[str, Callable[[], Data]]:
    return RECIPES


@hookimpl
def unimim_importers() -> dict[str, str]:
    return {"cae": "unimim_cae.importer:CAEImporter"}
