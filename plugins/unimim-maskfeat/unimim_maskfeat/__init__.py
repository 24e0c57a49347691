"""What this distribution adds to unimim: MaskFeat."""

from collections.abc import Callable, Mapping
from typing import Any

from unimim import hookimpl

from .recipes import RECIPES


@hookimpl
def unimim_teachers() -> Mapping[str, str]:
    return {"hog": "unimim_maskfeat.hog:HOG"}


@hookimpl
def unimim_recipes() -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    return RECIPES


@hookimpl
def unimim_importers() -> Mapping[str, str]:
    return {"maskfeat": "unimim_maskfeat.importer:MaskFeat"}
