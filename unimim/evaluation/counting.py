"""The work of a training step, counted from shapes alone: operations, bytes moved, bytes held."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..objective import Objective
from ..recipe import Recipe
from ..types import _move
from .cost import Case
from .workload import Workload

PHASES = ("forward", "backward", "update")
"""Of a step: up to the loss, its gradient, and what comes after: clipping, the optimizer, momentum copies."""
aten = torch.ops.aten
FREE = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten._unsafe_view.default,
    aten.detach.default,
    aten.lift_fresh.default,
}
"""Operations besides views that move no byte."""


@dataclass(frozen=True)
class Work:
    """Of one step of one process.

    axes: operations by axis, of matrix products and convolutions, a multiplication and an addition being two.
    flops: the same by phase.  single: those among them in float32, where the recipe computes in bfloat16.
    moved: bytes by phase that all other operations read and write.
    gradients: bytes that processes add up.  held: bytes of weights, teachers and optimizer state.
    passing: bytes of activations, gradients and whatever else a step makes and drops, at the peak.
    """

    images: int
    axes: dict[str, int]
    flops: dict[str, int]
    single: dict[str, int]
    moved: dict[str, int]
    gradients: int
    held: int
    passing: int


def count(recipe: Recipe) -> Work:
    """The work of a step of `recipe` in one process, from shapes alone: nothing is computed, nothing is loaded.

    Teachers have new weights, which cost what loaded ones do. Attention is counted as it is computed on a CPU, written out.
    Raises ValueError if a step's shapes depend on values, or if what is fitted to images first does not tell by a flag.
    """
    try:
        workload = Imagined(recipe)
        with workload.mode, as_fused(), Meter(mixed=recipe.precision != "float32") as meter:
            axes = workload.own_flops()
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(
            f"{error} depends on values in a step, which a plan has not; measure it without --plan"
        ) from error
    trained = [parameter for parameter in workload.objective.parameters() if parameter.requires_grad]
    return Work(
        images=recipe.batch,
        axes=axes,
        flops=meter.flops,
        single=meter.single,
        moved=meter.moved,
        gradients=sum(_size(parameter) for parameter in trained),
        held=workload.held(),
        passing=meter.peak,
    )


class Imagined(Workload):
    """A workload of tensors that have shapes and no values. Only weights and batch are made first, as a step's shapes may
    follow from the masks."""

    def __init__(self, recipe: Recipe) -> None:
        objective = Objective(unloaded(recipe)).train()
        flags = (flag for flag in objective.buffers() if flag.dtype == torch.bool and flag.ndim == 0)
        for flag in flags:  # "has been fitted to the data"
            flag.fill_(True)
        if objective.needs_fit:
            raise ValueError(f"{recipe.name}: a part of it is fitted to images first; measure it, without --plan")
        self._see(Case(recipe), torch.device("cpu"), objective)
        self.mode = FakeTensorMode()
        shapes: dict[int, Any] = {
            id(t): self.mode.from_tensor(t) for t in [*objective.parameters(), *objective.buffers()]
        }
        self.objective = self.model = copy.deepcopy(objective, shapes)
        self.batch = _move(self.batch, self.mode.from_tensor)
        with self.mode:
            self._replay()
            self._prepare()
            self.step()  # which makes the optimizer's state

    def held(self) -> int:
        state = tree_leaves([[*group.values()] for group in self.optimizer.state.values()])
        tensors = [*self.objective.parameters(), *self.objective.buffers(), *state]
        return sum({t.untyped_storage()._cdata: _size(t) for t in tensors if isinstance(t, Tensor)}.values())


@contextmanager
def as_fused() -> Iterator[None]:
    """Attention that is written out, to be counted, stays in bfloat16 like the fused one that it stands for."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def unloaded(recipe: Recipe) -> Recipe:
    """The same recipe, its teachers without the weights that they would load."""
    terms = {name: term.model_copy(update={"teacher": term.teacher.untrained()}) for name, term in recipe.terms.items()}
    return recipe.model_copy(update={"terms": terms})


class Meter(TorchDispatchMode):
    """Counts what passes, by phase: operations, bytes read and written by all that has none, and the most bytes alive."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mixed = mixed
        self.flops, self.single, self.moved = (dict.fromkeys(PHASES, 0) for _ in range(3))
        self.alive = self.peak = 0
        self.phase = "forward"
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if torch._C._current_graph_task_id() != -1:
            self.phase = "backward"
        elif self.phase == "backward":
            self.phase = "update"
        if func.is_view or func in FREE or func.namespace == "prim":
            return out
        made = [] if any(returned.alias_info for returned in func._schema.returns) else [*_tensors(out)]
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            operations = formula(*args, **kwargs, out_val=out)
            self.flops[self.phase] += operations
            if self.mixed and next(_tensors(args)).dtype == torch.float32:
                self.single[self.phase] += operations
        else:
            self.moved[self.phase] += sum(map(_size, [*_touched(func._schema, args, kwargs), *made]))
        for tensor in made:
            self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.alive -= size


def _touched(schema: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors that an operation is given; one that it changes twice, as it is read and written."""
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
    for argument in schema.arguments:
        tensors = [*_tensors(given.get(argument.name))]
        yield from tensors
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _size(tensor: Tensor) -> int:
    """Bytes; what an expanded tensor repeats counts once."""
    kept = (length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not length)
    return math.prod(kept) * tensor.element_size()
