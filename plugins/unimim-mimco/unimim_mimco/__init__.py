"""What this distribution adds to unimim: recipes of the core's components."""

from collections.abc import Callable

from unimim import hookimpl
from unimim.recipes import Data

from .recipes import RECIPES


@hookimpl
def unimim_recipes() -> dict[str, Callable[[], Data]]:
    return RECIPES
