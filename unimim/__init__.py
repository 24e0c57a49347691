"""unimim: masked image modeling as one equation, loss = L(N(T(I_full)), H(S(I_masked))).

Names below are imported on first use, so that `import unimim` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "hookimpl": "hooks",
    "plugins": "registry",
    "Logger": "loggers",
    "Release": "releases",
    "Component": "registry",
    "Teacher": "axes",
    "Norm": "axes",
    "Student": "axes",
    "Head": "axes",
    "HeadConfig": "axes",
    "Loss": "axes",
    "MaskSampler": "axes",
    "Views": "axes",
    "Batch": "types",
    "Encoded": "types",
    "Geometry": "types",
    "Mask": "types",
    "Penalized": "types",
    "Progress": "types",
    "Query": "types",
    "Rendition": "types",
    "Tap": "types",
    "Target": "types",
    "TargetSpec": "types",
    "View": "types",
    "Schedule": "schedule",
    "Recipe": "recipe",
    "Term": "recipe",
    "RecipeError": "recipe",
    "load": "recipe",
    "Objective": "objective",
    "Sampling": "sampling",
    "uniform": "address",
    "all_gather": "world",
    "all_reduce_sum": "world",
    "local": "world",
    "paper": "provenance",
    "official": "provenance",
    "ours": "provenance",
}
__all__ = [
    "Batch",
    "Component",
    "Encoded",
    "Geometry",
    "Head",
    "HeadConfig",
    "Logger",
    "Loss",
    "Mask",
    "MaskSampler",
    "Norm",
    "Objective",
    "Penalized",
    "Progress",
    "Query",
    "Recipe",
    "RecipeError",
    "Release",
    "Rendition",
    "Sampling",
    "Schedule",
    "Student",
    "Tap",
    "Target",
    "TargetSpec",
    "Teacher",
    "Term",
    "View",
    "Views",
    "__version__",
    "all_gather",
    "all_reduce_sum",
    "hookimpl",
    "load",
    "local",
    "official",
    "ours",
    "paper",
    "plugins",
    "uniform",
]

if TYPE_CHECKING:
    from .address import uniform
    from .axes import Head, HeadConfig, Loss, MaskSampler, Norm, Student, Teacher, Views
    from .hooks import hookimpl
    from .loggers import Logger
    from .objective import Objective
    from .provenance import official, ours, paper
    from .recipe import Recipe, RecipeError, Term, load
    from .registry import Component, plugins
    from .releases import Release
    from .sampling import Sampling
    from .schedule import Schedule
    from .types import (
        Batch,
        Encoded,
        Geometry,
        Mask,
        Penalized,
        Progress,
        Query,
        Rendition,
        Tap,
        Target,
        TargetSpec,
        View,
    )
    from .world import all_gather, all_reduce_sum, local


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'unimim' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
