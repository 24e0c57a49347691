"""Processes: joining a group that torchrun or srun started, starting one, and spreading an objective over it."""

from __future__ import annotations

import ctypes
import inspect
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ..world import host_group, world_size
from .memory import keep_freed_memory
from .run import Run
from .slurm import SIGNALS, join_slurm

DDP_OPTIONS = inspect.signature(DistributedDataParallel).parameters


@contextmanager
def process_group(run: Run) -> Iterator[torch.device]:
    """Join the group of torchrun's (or srun's) environment variables, if they are set; the device of this process.

    NCCL between CUDA devices, gloo otherwise. A process alone is a group of one if it is to shard, and none otherwise.
    On a CPU, the process keeps the memory of freed tensors from now on (`keep_freed_memory`).
    """
    join_slurm()
    alone = "WORLD_SIZE" not in os.environ
    device = torch.device(run.device) if alone or run.device != "cuda" else torch.device("cuda", _local_rank())
    if device.type == "cpu":
        keep_freed_memory()
    if dist.is_initialized() or (alone and run.parallel == "ddp"):
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(minutes=2 * run.hang_minutes + 1)  # later than the watch, which knows more
    if alone:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        _die_with_parent()
        dist.init_process_group(backend, timeout=timeout)
    try:
        yield device
    finally:
        dist.destroy_process_group()


class Shardable(Protocol):
    """What sharding must know of an objective."""

    def blocks(self) -> Iterable[nn.Module]: ...
    def frozen_teachers(self) -> Iterable[nn.Module]: ...


def parallel(objective: Any, run: Run, device: torch.device) -> nn.Module:
    """`objective` as the processes train it together; its start values become those of rank 0.

    "ddp": every process holds all of it. "fsdp": FSDP2, every transformer block a unit, the rest another, momentum copies
    sharded as what they copy, so that they are averaged in place; frozen teachers whole, or each a unit. Gradients are
    summed in float32. Blocks compute under the loop's autocast, so both give the same numbers.
    """
    if run.parallel == "fsdp":
        return _shard(objective, run, device)
    if world_size() == 1:
        module: nn.Module = objective
        return module
    devices = [device] if device.type == "cuda" else None
    once = "forward_sync_buffers" if "forward_sync_buffers" in DDP_OPTIONS else "broadcast_buffers"  # the newer name
    options: dict[str, Any] = {once: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(objective, devices, **options)


def _shard(objective: Any, run: Run, device: torch.device) -> nn.Module:
    shardable: Shardable = objective
    for tensor in objective.state_dict().values():
        dist.broadcast(tensor, 0)
    policy: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (world_size(),)),
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
        "reshard_after_forward": True,
    }
    frozen = [teacher for teacher in shardable.frozen_teachers() if any(True for _ in teacher.parameters())]
    if run.shard_teachers:
        for teacher in frozen:
            fully_shard(teacher, **policy)
        frozen = []
    # A block also returns its MLP branch, which is a view. Nothing writes into what a block returned.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    for block in shardable.blocks():
        fully_shard(block, **policy)
    module: nn.Module = objective
    fully_shard(module, **policy, ignored_params={p for teacher in frozen for p in teacher.parameters()})
    return module


@contextmanager
def accumulating(model: nn.Module, last: bool) -> Iterator[None]:
    """Backward passes inside leave gradients where they are, but for the last one, which sums them over processes."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_is_last_backward(last)
        yield
    elif isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


class Agreement:
    """Wishes of all processes, on which all act at the same step; nobody waits for a device to know them."""

    def __init__(self) -> None:
        self._group = host_group()
        self._flight: tuple[Any, Tensor] | None = None

    def on(self, *wishes: bool) -> list[bool]:
        """Each wish, True if any process had it: at this call with one process, at the call before with several."""
        if self._group is None:
            return list(wishes)
        agreed = [False] * len(wishes)
        if self._flight is not None:
            work, flags = self._flight
            work.wait()
            agreed = [flag > 0 for flag in flags.tolist()]
        flags = torch.tensor(wishes, dtype=torch.int32)
        self._flight = dist.all_reduce(flags, group=self._group, async_op=True), flags
        return agreed


def launch(num_processes: int, arguments: Sequence[str], module: str = "unimim") -> None:
    """`python -m MODULE ARGUMENTS` in several local processes, through torchrun's own agent."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(1, (os.cpu_count() or 1) // num_processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id="unimim",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # a run that was stopped or refused must end; the same command goes on with it
        signals_to_handle=SIGNALS,
    )
    elastic_launch(config, sys.executable)("-m", module, *arguments)


def _local_rank() -> int:
    return int(os.environ["LOCAL_RANK"])


def _die_with_parent() -> None:
    """Ask Linux to stop this process, which then saves, when its agent dies: it would go on without one."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
