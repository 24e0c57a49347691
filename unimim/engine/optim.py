"""Parameter groups of a recipe's optimization policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import Lars
from torch import nn

from ..schedule import Optimization


def parameter_groups(module: nn.Module, policy: Optimization, depth_of: Callable[[str], int]) -> list[dict[str, Any]]:
    """Groups of trainable parameters that share weight decay and rate scale (`layer_decay` ** depth)."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith(".bias") or name.rpartition(".")[2] in policy.no_decay
        scale = 1.0 if policy.layer_decay is None else policy.layer_decay ** depth_of(name)
        groups.setdefault((plain, scale), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if plain else policy.weight_decay(0),
            "decays": not plain,
            "rate_scale": scale,
        }
        for (plain, scale), parameters in groups.items()
    ]


def make_optimizer(module: nn.Module, policy: Optimization, depth_of: Callable[[str], int]) -> torch.optim.Optimizer:
    """AdamW over those groups, fused; or LARS, which adapts the rate of matrices, also without weight decay, and of no vector."""
    groups = parameter_groups(module, policy, depth_of)
    if policy.optimizer == "lars":
        groups = [{**group, "always_adapt": group["decays"]} for group in groups]
        return Lars(groups, lr=policy.lr, momentum=0.9, trust_coeff=0.001)  # type: ignore[no-any-return]
    return torch.optim.AdamW(groups, lr=policy.lr, betas=policy.betas, eps=policy.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]


def set_decay(optimizer: torch.optim.Optimizer, decay: float) -> None:
    for group in optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = decay
