"""Run by torchrun: trains a toy recipe and saves what it became, on rank 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.engine import toys
from unimim import Sampling
from unimim.engine.distributed import process_group
from unimim.engine.log import Log
from unimim.engine.loop import Outcome, train
from unimim.training import build, plan_of
from unimim.world import rank, whole

ROOT = Path(__file__).parents[2]


def main(name: str, out: Path, *more: str, **options: Any) -> Outcome:
    """Train the toy recipe `name` with the changes `more` and the Run `options`; state.pt when it is done."""
    recipe = toys.recipe(name, *more)
    out.mkdir(parents=True, exist_ok=True)
    run = toys.run(out, **options)
    with process_group(run) as device:
        objective = build(recipe)
        sampling = Sampling(recipe, objective.student.geometry, objective.renditions)
        plan = plan_of(recipe, toys.Noise())
        with Log(out, name, plan.total_steps, plan.batch, quiet=True) as log:
            outcome = train(objective, toys.Noise(), sampling, plan, run, device, log, {})
        state = {name: whole(value) for name, value in objective.state_dict().items()}
        if rank() == 0:
            torch.save(state, out / "state.pt")
    return outcome


def launch(name: str, out: Path, *more: str, procs: int = 2, **options: Any) -> None:
    """`main` in `procs` processes."""
    torchrun("tests.distributed.worker", name, str(out), json.dumps(options), *more, procs=procs)


def torchrun(module: str, *arguments: str, procs: int = 2) -> None:
    """`python -m module arguments` in `procs` processes, which must end well."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={procs}", "--standalone", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, module, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]


def state(out: Path) -> dict[str, torch.Tensor]:
    """What `main` saved."""
    tensors: dict[str, torch.Tensor] = torch.load(out / "state.pt", weights_only=True)
    return tensors


def column(out: Path, name: str) -> list[float]:
    """One number of every line of metrics.jsonl."""
    return [json.loads(line)[name] for line in (out / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[4:], **json.loads(sys.argv[3]))
