"""R15. Running out of memory ends a run with what to try, and leaves the last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine import toys
from unimim import Sampling
from unimim.engine.checkpoint import Checkpoints, verify
from unimim.engine.log import Log
from unimim.engine.loop import OutOfMemory, train
from unimim.training import build, plan_of

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    MemoryError(),
)


def start(out: Path, error: BaseException | None, at: int) -> None:
    """The toy, whose student raises `error` in step `at`."""
    recipe, run = toys.recipe(), toys.run(out, checkpoint_minutes=1e-9)
    objective, plan = build(recipe), plan_of(recipe, toys.Noise())

    def fail(module: Any, given: Any) -> None:
        if error is not None and objective.progress.step == at:
            raise error

    objective.student.register_forward_pre_hook(fail)
    out.mkdir(exist_ok=True, parents=True)
    sampling = Sampling(recipe, objective.student.geometry)
    with Log(out, "toy", plan.total_steps, plan.batch, quiet=True) as log:
        train(objective, toys.Noise(), sampling, plan, run, torch.device("cpu"), log, {})


def test_advice_and_an_intact_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advised = intact = 0
    for number, error in enumerate(ERRORS):
        for at in (0, 4):
            out = tmp_path / f"{number}-{at}"
            with pytest.raises(OutOfMemory) as caught:
                start(out, error, at)
            advised += "8 images at once" in str(caught.value) and "--micro-batch 4" in str(caught.value)
            found = Checkpoints(out / "checkpoints").newest()
            intact += found is None if at == 0 else found is not None and found.step == at and not verify(found.path)
            start(out, None, at)
    with capsys.disabled():
        print(f"\nR15 OOMs injected 6, clean exit with batch-size advice {advised}, last checkpoint intact {intact}")
    assert (advised, intact) == (6, 6)


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, torch.distributed.DistBackendError])
def test_other_errors_stay_what_they_are(tmp_path: Path, kind: type[RuntimeError]) -> None:
    with pytest.raises(kind, match="shapes cannot be multiplied") as caught:
        start(tmp_path, kind("mat1 and mat2 shapes cannot be multiplied"), 0)
    assert not isinstance(caught.value, OutOfMemory)
