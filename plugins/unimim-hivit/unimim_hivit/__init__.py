"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from collections.abc import Callable
from typing import Any

from unimim import hookimpl

from .recipes import RECIPES


@hookimpl
def unimim_students() -> dict[str, str]:
    return {"hivit": "unimim_hivit.hivit:HiViT"}


@hookimpl
def unimim_recipes() -> dict[str, Callable[[], Any]]:
    return RECIPES


@hookimpl
def unimim_importers() -> dict[str, str]:
    return {"hivit": "unimim_hivit.importer:HiViT"}
