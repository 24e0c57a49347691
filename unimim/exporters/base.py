"""What every format shares: what is exported, how it is compared, and the graph of a student."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..axes import Student
from ..recipe import Recipe
from ..types import View

TOLERANCE = 1e-4
"""Largest difference of features of size 1 that float32 sums in another order explain."""


@dataclass(frozen=True)
class Trained:
    """A student on the CPU, its recipe, and the folder that it was read from, of weights or of a run."""

    source: Path
    recipe: Recipe
    student: Student


class Features(nn.Module):
    """image (B, C, H, W), RGB in [0, 1] of the student's size -> tokens after the student's final norm, if it has one.

    {"patches": (B, N, D), in raster order, "prefix": (B, P, D), class token first}; without prefix tokens no "prefix".
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        encoded = self.student(View(image))
        prefix = {"prefix": encoded.prefix} if encoded.prefix.shape[1] else {}
        return {"patches": encoded.tokens, **prefix}


def graph(student: Student) -> torch.export.ExportedProgram:
    """`Features` of a student as operations of torch alone, for any number of images. ValueError if it cannot be traced."""
    batch = {"image": {0: torch.export.Dim("batch", min=1)}}
    try:
        with at_rest(student):  # strict: only then is len(x) of a tensor not a constant
            program = torch.export.export(Features(student), (noise(student, 2),), dynamic_shapes=batch, strict=True)
    except Exception as error:  # the tracer's own, those of torch.fx and those of the student have nothing in common
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"torch.export cannot trace student {student.config.name!r} ({type(error).__name__}: {reason}); its forward "
            f"must not decide by the values of tensors, nor by the number of images"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def compare(student: Student, patches: Callable[[Tensor], Tensor], what: str) -> float:
    """max |patches(image) - the student's| over one image and over three, all random; the largest absolute difference.

    patches: image (B, C, H, W) in [0, 1] -> (B, N, D).  ValueError, with `what` as its subject, if the difference is not
    below 1e-4 max(1, largest feature), or the shapes differ.
    """
    worst = largest = 0.0
    with at_rest(student):
        for batch in (1, 3):
            image = noise(student, batch)
            ours, theirs = student(View(image)).tokens, patches(image)
            if ours.shape != theirs.shape:
                raise ValueError(f"{what} has features {tuple(theirs.shape)}, the student {tuple(ours.shape)}")
            found = float((ours - theirs).abs().max())
            worst = found if found != found else max(worst, found)  # keep a nan
            largest = max(largest, float(ours.abs().max()))
    if not worst < TOLERANCE * max(1.0, largest):
        raise ValueError(
            f"{what} differs from the student by {worst:.2g} (features up to {largest:.2g}); do not use it"
        )
    return worst


def noise(student: Student, batch: int) -> Tensor:
    """The same uniform pixels (B, C, H, W) every time."""
    geometry = student.geometry
    return torch.rand(batch, geometry.channels, *geometry.image, generator=torch.Generator().manual_seed(batch))


@contextmanager
def at_rest(student: Student) -> Iterator[None]:
    """In eval mode and without gradients; afterwards in the mode it was in."""
    training = student.training
    student.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        student.train(training)
