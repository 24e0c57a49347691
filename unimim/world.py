"""Sums and gathers over all processes that gradients flow through; with one process they are the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllReduceSum(torch.autograd.Function):
    """y = sum over processes of x. Every process holds a part of the loss, so dL/dx is the sum of all dL/dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of x over all processes, same shape everywhere, with gradient."""
    if world_size() == 1:
        return x
    return _AllReduceSum.apply(x)  # type: ignore[no-any-return]


def all_gather(x: Tensor) -> Tensor:
    """x (B, ...) of every process in rank order -> (world * B, ...), with gradient."""
    if world_size() == 1:
        return x
    slots = x.new_zeros(world_size(), *x.shape)
    slots[rank()] = x
    return all_reduce_sum(slots).flatten(0, 1)
