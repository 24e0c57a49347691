"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from collections.abc import Callable

from unimim import hookimpl
from unimim.recipes import Data

from .recipes import RECIPES


@hookimpl
def unimim_students() -> dict[str, str]:
    return {"splitmask": "unimim_splitmask.student:SplitMask"}


@hookimpl
def unimim_teachers() -> dict[str, str]:
    return {"other_fold": "unimim_splitmask.match:OtherFold"}


@hookimpl
def unimim_heads() -> dict[str, str]:
    return {"mean": "unimim_splitmask.match:Mean"}


@hookimpl
def unimim_recipes() -> dict[str, Callable[[], Data]]:
    return RECIPES
