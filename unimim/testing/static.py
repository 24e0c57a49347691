"""A training step on a GPU that is not there: the host must be able to run ahead of it, and no shape may depend on data."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ..objective import Objective
from ..recipe import Recipe, load
from ..sampling import Sampling
from ..types import Batch, Progress, _move

CUDA = "cuda"
TORCH = str(Path(torch.__file__).parent)
PROGRESS = Progress(3, 10, 5)


class Waits(Exception):
    """An operation makes the host wait for the device."""


class Watch(TorchDispatchMode):
    """Raises Waits where values of tensors on `device` become numbers or shapes of the host, or tensors change device."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        problem = self._problem(func, args, kwargs or {})
        if problem:
            raise Waits(f"{problem} ({func})")
        return func(*args, **(kwargs or {}))

    def _problem(self, func: Any, args: Any, options: Any) -> str:
        aten = torch.ops.aten
        here = bool(args) and isinstance(args[0], Tensor) and args[0].device.type == self.device
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            return "indexing with a mask must count it first; use torch.where, or gather at indices" if masks else ""
        if here and {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags}:
            return "a number or a shape is read from a tensor's values"
        if func not in (aten._to_copy.default, aten.copy_.default):
            return ""
        copying = func is aten.copy_.default
        source, target = (args[1], args[0].device) if copying else (args[0], options.get("device") or args[0].device)
        unasked = options.get("non_blocking") or (copying and len(args) > 2 and args[2])
        if source.device.type == torch.device(target).type:
            return ""
        if source.device.type == self.device:
            return "a tensor is copied to the host"
        return "" if unasked else "a number or a tensor of the host is copied to the device; make it there"


@contextmanager
def absent_gpu() -> Iterator[Callable[[Any], Any]]:
    """Inside, to_gpu(module, batch or tensor) gives a copy on a CUDA device that has shapes and no values.

    What waits for the device, what asks for a value, and what mixes devices raises AssertionError with the operation and
    the line. No backward pass: torch will not run one on a device that is not there.
    """
    with FakeTensorMode() as mode:

        def copied(tensor: Tensor) -> Tensor:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)
            return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made

        def to_gpu(value: Any) -> Any:
            if isinstance(value, nn.Module):
                memo: dict[int, Any] = {
                    id(tensor): copied(tensor) for tensor in chain(value.parameters(), value.buffers())
                }
                with unset_fake_temporarily():  # what is neither parameter nor buffer stays on the host, as by .to()
                    return copy.deepcopy(value, memo)
            return _move(_move(value, mode.from_tensor), lambda tensor: tensor.to(CUDA, non_blocking=True))

        with _told(), Watch(CUDA):
            yield to_gpu


def check_static_step(recipe: Recipe | str, overrides: Sequence[str] = (), compiled: bool = False) -> None:
    """One training step of a recipe never waits for the device it runs on, and its shapes follow from those of the batch.

    Counts, forward pass and the hooks before and after the step run on a CUDA device that need not be there
    (`absent_gpu`), the backward pass on the CPU, as one of two processes. AssertionError names what waits, and where.
    compiled: torch.compile must also find one graph in the forward pass, which gives the same loss.
    """
    recipe = load(recipe if isinstance(recipe, str) else recipe.data(), [*overrides, "precision=float32"])
    objective = Objective(recipe).train()
    sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, objective.student.geometry.channels, 40, 36), generator=draw, dtype=torch.uint8)
    batch = sampling.collate([sampling(image, 0, index) for index, image in enumerate(images)])
    if objective.needs_fit:
        objective.fit([batch] * 16)
    with two_processes():
        loss = _forward(objective, batch)  # first: for what a part finds out once and remembers, it may wait
        with _told(), Watch("cpu"):
            loss.backward()
        with absent_gpu() as to_gpu:
            _forward(to_gpu(objective), to_gpu(batch))
    if compiled:
        torch._dynamo.reset()
        one_graph: Any = torch.compile(objective, fullgraph=True, backend="eager")
        assert torch.allclose(_loss(one_graph, batch), _loss(objective, batch)), "compiled, the loss differs"


def _forward(objective: Objective, batch: Batch) -> Tensor:
    objective.on_step_start(PROGRESS)
    loss = _loss(objective, batch)
    objective.on_step_end(PROGRESS)
    return loss


def _loss(objective: Objective, batch: Batch) -> Tensor:
    torch.manual_seed(0)
    return objective(batch, objective.count(batch))["loss"]  # type: ignore[no-any-return]


@contextmanager
def _told() -> Iterator[None]:
    """What the modes raise as AssertionError that names the line outside torch."""
    try:
        yield
    except (Waits, DataDependentOutputException, DynamicOutputShapeException, RuntimeError) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(TORCH)]
        frame = next(frame for frame in reversed(frames) if frame.filename != __file__)
        raise AssertionError(f"{frame.filename}:{frame.lineno}: {frame.line}: {error}") from error


@contextmanager
def two_processes() -> Iterator[None]:
    """This one is the first of two processes; from the other comes nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
