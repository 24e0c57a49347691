"""Processes that form a group, and a training of a toy recipe for them, which saves what it became."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what every process would otherwise load anew
import torch.distributed as dist

from tests.engine import toys
from unimim import Sampling
from unimim.engine.distributed import process_group
from unimim.engine.log import Log
from unimim.engine.loop import Outcome, train
from unimim.training import build, plan_of
from unimim.world import rank, whole

PROCESSES = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
PROCESSES.set_forkserver_preload([__name__])
PATIENCE = 500.0
"""Seconds until processes that do not end are killed."""


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


def together(work: Callable[..., object], *arguments: Any, procs: int = 2, **options: Any) -> None:
    """`work(*arguments, **options)` in `procs` new processes with the environment of torchrun, which must end well.

    On Linux they are forks of a process that has loaded torch and done nothing else, because loading it takes most of the
    time that a small training takes.
    """
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=PATIENCE))
    with tempfile.TemporaryDirectory() as name:
        logs = [Path(name) / f"{number}.log" for number in range(procs)]
        ranks = [
            PROCESSES.Process(target=_join, args=(number, procs, store.port, log, work, arguments, options))
            for number, log in enumerate(logs)
        ]
        for process in ranks:
            process.start()
        end = time.monotonic() + PATIENCE
        while any(process.is_alive() for process in ranks) and time.monotonic() < end:
            if any(process.exitcode for process in ranks):
                break
            time.sleep(0.02)
        codes = []
        for process in ranks:
            process.join(5)
            process.kill()
            process.join()
            codes.append(process.exitcode)
        said = "".join(log.read_text()[-4000:] for log in logs if log.exists())
    assert codes == [0] * procs, said


def _join(
    number: int, procs: int, port: int, log: Path, work: Callable[..., object], arguments: Any, options: Any
) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()  # where a process was that C code aborted
    about = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": procs, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in about.items()})
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", UNIMIM_PLUGINS="none")  # the store is not rank 0's
    torch.set_num_threads(1)
    work(*arguments, **options)


def launch(name: str, out: Path, *more: str, procs: int = 2, **options: Any) -> None:
    """`main` in `procs` processes."""
    together(main, name, out, *more, procs=procs, **options)


def state(out: Path) -> dict[str, torch.Tensor]:
    """What `main` saved."""
    tensors: dict[str, torch.Tensor] = torch.load(out / "state.pt", weights_only=True)
    return tensors


def column(out: Path, name: str) -> list[float]:
    """One number of every line of metrics.jsonl."""
    return [json.loads(line)[name] for line in (out / "metrics.jsonl").read_text().splitlines()]
