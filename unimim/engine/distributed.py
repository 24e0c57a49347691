"""Processes: joining a group that torchrun started, and starting one."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..world import world_size

DDP_OPTIONS = inspect.signature(DistributedDataParallel).parameters


@contextmanager
def process_group(device: str, minutes: float = 10.0) -> Iterator[torch.device]:
    """Join the group of torchrun's environment variables, if they are set; the device of this process.

    NCCL between CUDA devices, gloo otherwise.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield torch.device(device)
        return
    mine = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    dist.init_process_group("nccl" if mine.type == "cuda" else "gloo", timeout=timedelta(minutes=minutes))
    try:
        yield mine
    finally:
        dist.destroy_process_group()


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` behind DDP if there are several processes; parameters and buffers start as those of rank 0."""
    if world_size() == 1:
        return module
    devices = [device] if device.type == "cuda" else None
    once = "forward_sync_buffers" if "forward_sync_buffers" in DDP_OPTIONS else "broadcast_buffers"  # the newer name
    options: dict[str, Any] = {once: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(module, devices, **options)


def launch(num_processes: int, arguments: Sequence[str]) -> None:
    """`python -m unimim ARGUMENTS` in several local processes, through torchrun's own agent."""
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
    )
    elastic_launch(config, sys.executable)("-m", "unimim", *arguments)
