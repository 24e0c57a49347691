"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from unimim import hookimpl


@hookimpl
def unimim_teachers() -> dict[str, str]:
    return {"edges": "unimim_example.edges:Edges"}


@hookimpl
def unimim_recipes() -> dict[str, str]:
    return {"edges-micro": "unimim_example.recipes:edges_micro"}
