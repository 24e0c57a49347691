"""Training on labels by the engine that pretrains: a student with an answer on top, and what the loop wants of it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..axes import Student
from ..engine.checkpoint import write_text
from ..engine.data.decode import BadImage
from ..engine.data.loader import Sampler
from ..engine.data.sources import ImageSource
from ..engine.distributed import process_group
from ..engine.folder import only_writer, write_status
from ..engine.log import Log
from ..engine.loop import train
from ..engine.run import Plan, Run
from ..layers.blocks import Block
from ..targets import Replayed
from ..types import Batch, Progress, Target, View
from ..world import rank, world_size


class Supervised(nn.Module, ABC):
    """loss = mean over the global batch of image_losses; in eval mode the forward pass gives answers instead.

    What `engine.loop.train` trains. frozen: the student stays in eval mode and is not trained.
    tester: called after every epoch, on every process; its value is logged as "test", and the best is kept with its epoch.
    """

    best: Tensor
    needs_fit = False

    def __init__(self, student: Student, frozen: bool = False) -> None:
        super().__init__()
        self.student, self.frozen = student.requires_grad_(not frozen), frozen
        self.register_buffer("best", torch.zeros(2, dtype=torch.float64))
        self.progress = Progress(0, 1, 1)
        self.health: dict[str, Tensor] = {}
        self.tester: Callable[[], float] | None = None

    @abstractmethod
    def image_losses(self, batch: Batch) -> Tensor:
        """The loss of every image (B,)."""

    @abstractmethod
    def answers(self, view: View) -> Tensor:
        """What is scored: logits (B, classes, ...) of a view."""

    def forward(self, batch: Batch, totals: Tensor | None = None) -> dict[str, Tensor]:
        """{"loss": ()} while training, else {"answers": (B, ...)}: one entry for all, since sharded weights gather there."""
        if not self.training:
            return {"answers": self.answers(next(iter(batch.views.values())))}
        losses = self.image_losses(batch)
        return {"loss": losses.sum() / (len(losses) if totals is None else totals[0])}

    def count(self, batch: Batch) -> Tensor:
        return torch.full((1,), float(len(batch)), device=batch.index.device)

    def depth_of(self, parameter: str) -> int:
        owner, _, name = parameter.partition(".")
        return self.student.config.num_layers + 1 - self.student.layer_of(name) if owner == "student" else 0

    def blocks(self) -> list[nn.Module]:
        return [] if self.frozen else [module for module in self.modules() if isinstance(module, Block)]

    def frozen_teachers(self) -> list[nn.Module]:
        return []

    def replayed(self) -> dict[str, Replayed]:
        return {}

    def ask(self, batch: Batch) -> dict[str, Target]:
        return {}

    def training_state(self) -> dict[str, Tensor]:
        return dict(self.state_dict())

    def train(self, mode: bool = True) -> Supervised:
        super().train(mode)
        if self.frozen:
            self.student.eval()
        return self

    def freeze_unused(self, batch: Batch) -> None:
        """Parameters that the answer does not depend on (mask tokens, a final norm that is passed by) are not trained:
        several processes would wait for their gradients."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(self.image_losses(batch).sum(), trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Nothing is learned before training."""

    def warnings(self, values: Mapping[str, float]) -> list[str]:
        return []

    def on_step_start(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, progress: Progress) -> None:
        """Nothing moves beside the gradient."""

    def on_epoch_end(self, progress: Progress) -> None:
        if self.tester is None:
            return
        value = self.tester()
        self.health = {"test": torch.tensor(value, device=self.best.device)}
        if value > self.best[0]:
            self.best.copy_(torch.tensor([value, progress.epoch + 1]))


def train_supervised(
    model: Supervised,
    source: ImageSource,
    sampling: Sampler,
    plan: Plan,
    run: Run,
    device: torch.device,
    title: str,
    about: Mapping[str, Any],
) -> bool:
    """Train `model` in run.out, from where a run there was stopped; whether it is done. Inside `working`.

    about: what run.json says. Raises what engine.loop.train raises.
    """
    if rank() == 0:
        write_text(run.out / "run.json", json.dumps({**about, "run": run.model_dump(mode="json")}, indent=1))
        write_status(run.out, "running", None)
    with Log(run.out, title, plan.total_steps, plan.batch) as log:
        outcome = train(model, source, sampling, plan, run, device, log, {})
    if rank() == 0:
        write_status(run.out, outcome.status, outcome.step)
    return outcome.status == "done"


class Preempted(Exception):
    """Stopped on request; the same command goes on."""


@contextmanager
def working(run: Run) -> Iterator[torch.device]:
    """The processes of this command, with the folder run.out for no other command."""
    with process_group(run) as device, only_writer(run.out) if rank() == 0 else nullcontext():
        yield device


class Prepare(Protocol):
    """A decoded image (C, H, W) uint8 to what a model is shown in a test, uint8 or float in [0, 1]."""

    def __call__(self, image: Tensor) -> Tensor: ...


class _Tests(Dataset[Any]):
    """This process's share of a source: (index, image or None). The share is padded so that all processes step alike."""

    def __init__(self, source: ImageSource, prepare: Prepare) -> None:
        self.source, self.prepare = source, prepare
        self.first, self.stride = rank(), world_size()

    def __len__(self) -> int:
        return -(-len(self.source) // self.stride)

    def __getitem__(self, place: int) -> tuple[int, Tensor | None]:
        index = self.first + place * self.stride
        try:
            shown = self.prepare(self.source.read(min(index, len(self.source) - 1)))
        except BadImage:
            return -1, None
        return (index if index < len(self.source) else -1), shown


def _stack(samples: list[tuple[int, Tensor | None]]) -> tuple[list[int], Tensor]:
    """Unreadable images are left out; in their place stands a copy that nobody counts."""
    shown = [image for _, image in samples if image is not None]
    if not shown:
        raise BadImage("test images", "none in a whole batch can be read")
    images = [shown[0] if image is None else image for _, image in samples]
    return [index for index, _ in samples], torch.stack(images)


@torch.no_grad()
def answers(
    model: Supervised, source: ImageSource, prepare: Prepare, run: Run, device: torch.device, precision: str, batch: int
) -> Iterator[tuple[list[int], Tensor]]:
    """(indices, answers on the CPU, float32) of this process's share of a source; unreadable images are left out."""
    training = model.training
    model.eval()
    loader = DataLoader(_Tests(source, prepare), batch, num_workers=run.workers, collate_fn=_stack)
    for indices, images in loader:
        shown = Batch(
            {"main": View(images.to(device))}, {}, torch.zeros(len(indices), dtype=torch.int64, device=device)
        )
        with torch.autocast(device.type, torch.bfloat16, precision == "bfloat16"):
            found = model(shown)["answers"].float().cpu()
        keep = [place for place, index in enumerate(indices) if index >= 0]
        yield [indices[place] for place in keep], found[keep]
    model.train(training)
