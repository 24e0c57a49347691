"""How a check says which component broke which rule, and what a component of any kind must keep."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from ...axes import HeadConfig, LossConfig, MaskConfig, NormConfig, StudentConfig, TeacherConfig, ViewsConfig
from ...registry import Component, plugins

Named = str | Mapping[str, Any] | Component.Config
"""A component as a recipe names it."""
Must = Callable[[bool, str], None]
"""must(what holds, what to say otherwise)."""
_FIELDS: Mapping[str, Any] = {
    "teachers": TeacherConfig,
    "norms": NormConfig,
    "students": StudentConfig,
    "heads": HeadConfig,
    "losses": LossConfig,
    "masks": MaskConfig,
    "views": ViewsConfig,
}


def config_of(kind: str, value: Named) -> Any:
    """The Config of a component, checked to be registered, hashable and equal to its own JSON."""
    noun, adapter = plugins()[kind].noun, TypeAdapter(_FIELDS[kind])
    try:
        config = adapter.validate_python(value)
    except ValidationError as error:
        raise AssertionError(f"{noun} {value!r} is not accepted: {error}") from None
    must = requirements(noun, config)
    must(
        config.component is plugins()[kind][config.name], "its Config belongs to another class than the registered one"
    )
    must(adapter.validate_json(adapter.dump_json(config)) == config, "its Config must come back equal from JSON")
    try:
        hash(config)
    except TypeError as error:
        raise AssertionError(
            f"{noun} {config.name!r}: its Config must be hashable, so tuples and no lists: {error}"
        ) from None
    return config


def in_a_worker(must: Must, built: Any) -> Any:
    """What a loader worker gets of it."""
    try:
        return pickle.loads(pickle.dumps(built))
    except Exception as error:  # whatever its __reduce__ raises
        must(False, f"loader workers get it pickled, which fails: {error}")


def requirements(noun: str, config: Any) -> Must:
    return partial(require, f"{noun} {config.name!r}")


def require(who: str, met: bool, problem: str) -> None:
    if not met:
        raise AssertionError(f"{who}: {problem}")


def check_trained(must: Must, module: nn.Module) -> None:
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    missing = [name for name, parameter in trainable.items() if parameter.grad is None]
    must(not missing, f"these trainable parameters get no gradient: {missing}")
    broken = [name for name, parameter in trainable.items() if not finite(parameter.grad)]
    must(not broken, f"these parameters get a gradient that is not finite: {broken}")


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max()) if a.numel() else 0.0


def finite(x: Tensor | None) -> bool:
    return x is not None and bool(x.isfinite().all())
