"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from collections.abc import Callable, Mapping
from typing import Any

from unimim import hookimpl

from .recipes import RECIPES


@hookimpl
def unimim_heads() -> dict[str, str]:
    return {"prompting_decoder": "unimim_milan.prompting_decoder:PromptingDecoder"}


@hookimpl
def unimim_masks() -> dict[str, str]:
    return {"attentive": "unimim_milan.attentive:Attentive"}


@hookimpl
def unimim_recipes() -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    return RECIPES


@hookimpl
def unimim_importers() -> dict[str, str]:
    return {"milan": "unimim_milan.importer:MILAN"}
