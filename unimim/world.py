"""Sums and gathers over all processes that gradients flow through, and the parts of sharded tensors; with one process and
plain tensors all are the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def host_group() -> dist.ProcessGroup | None:
    """A group of all processes for talk between hosts, apart from the devices' traffic; None for one process."""
    group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
    return group  # type: ignore[no-any-return]


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


def whole(x: Tensor) -> Tensor:
    """A sharded tensor (DTensor) gathered, which every process must ask for; any other tensor as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def local(x: Tensor) -> Tensor:
    """This process's part of a sharded tensor, in place; any other tensor as it is."""
    return x.to_local() if hasattr(x, "to_local") else x
