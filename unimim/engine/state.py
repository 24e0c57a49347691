"""What a training must remember, as one flat mapping of tensors: the objective's state and the optimizer's, by parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..world import whole

KEYS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


def training_state(objective: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """ "objective/NAME" and "optimizer/NAME/KEY", KEY step, exp_avg and exp_avg_sq (AdamW) or momentum_buffer (LARS).

    The tensors are those in use, not copies.
    """
    state = {f"objective/{name}": tensor for name, tensor in objective.training_state().items()}
    for name, parameter in _trained(objective, optimizer).items():
        state |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    return state


def awaited_state(objective: Any, optimizer: torch.optim.Optimizer, held: set[str]) -> dict[str, Tensor]:
    """The mapping that a checkpoint with the tensors `held` is to fill; the optimizer gets its moments for those that had any.

    Raises ValueError that names what is missing or left over.
    """
    for name, parameter in _trained(objective, optimizer).items():
        keys = [key for key in KEYS if f"optimizer/{name}/{key}" in held]
        if keys:
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            optimizer.state[parameter] = {key: step if key == "step" else torch.zeros_like(parameter) for key in keys}
    state = training_state(objective, optimizer)
    missing, unexpected = sorted({*state} - held), sorted(held - {*state})
    if missing or unexpected:
        raise ValueError(f"the checkpoint does not fit the recipe: missing {missing}, unexpected {unexpected}")
    return state


def student_state(objective: Any) -> dict[str, Tensor]:
    """The student's tensors, whole. Every process calls it, because sharded ones are gathered."""
    return {name: whole(tensor) for name, tensor in objective.student.state_dict().items()}


def _trained(objective: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, nn.Parameter]:
    ours = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in objective.named_parameters() if id(parameter) in ours}
