"""What this distribution adds to unimim: the masked patch prediction of the ViT paper."""

from collections.abc import Callable, Mapping
from typing import Any

from unimim import hookimpl

from .recipes import RECIPES


@hookimpl
def unimim_teachers() -> Mapping[str, str]:
    return {"mean_color": "unimim_vit.mean_color:MeanColor"}


@hookimpl
def unimim_masks() -> Mapping[str, str]:
    return {"bert": "unimim_vit.bert:Bert"}


@hookimpl
def unimim_recipes() -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    return RECIPES
