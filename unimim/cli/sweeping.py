"""The command that answers a question with many runs: sweep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import emit, remark, say, show_table, table
from .errors import Failed, Interrupted, Problems, run_errors
from .inputs import Device, DryRun, open_data, refuse_torchrun, run_options
from .listing import Json
from .running import AGAIN, InMemory, MicroBatch, Workers, without

if TYPE_CHECKING:
    from ..sweep import Sweeping


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep, as in experiments/*/sweep.yaml.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the runs.", show_default="runs/sweeps, shared by all sweeps"),
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="D", help="Where the file's data are here.", show_default="as the file says")
    ] = "",
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Runs at a time.", show_default="one a CUDA device, else 1")
    ] = None,
    micro_batch: MicroBatch = None,
    workers: Workers = None,
    device: Device = None,
    in_memory: InMemory = False,
    table_only: Annotated[bool, typer.Option("--table", help="Print what is measured so far, and stop.")] = False,
    md: Annotated[bool, typer.Option("--md", help="Print the table as Markdown.")] = False,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Train and measure every run of a file, and set the paper's numbers beside them.

    Scores are kept in results.jsonl beside FILE. The same command goes on; more of them share the work.
    """
    from ..sweep import Sweeping, ordering, read
    from ..sweep import table as rows_of

    problems = Problems()
    refuse_torchrun(problems, "sweep")
    found = None
    with problems.of():
        found = read(file)
    problems.refuse()
    assert found
    folder = out or Path("runs/sweeps")
    train = open_data(problems, data or found.data, "train", labelled=True)
    test = open_data(problems, data or found.data, "val", labelled=True) if train else None
    run = run_options(problems, folder, 1, (), micro_batch=micro_batch, workers=workers, device=device)
    problems.refuse()
    assert run
    assert train
    assert test
    images = f"{train.fingerprint()}-{test.fingerprint()}"
    sweeping = Sweeping(file, found, folder, run, data or found.data, images, in_memory)
    tasks = sweeping.tasks()
    failed: list[str] = []
    if dry_run:
        waiting = [task for task in tasks if not sweeping.done(task)]
        for task in waiting:
            measured = "; ".join(" ".join((name, *own)) for name, own in task.protocols)
            say(f"{task.name}, seed {task.recipe.seed} ({task.recipe.hash}): {measured}")
        say(f"dry run: {len(waiting)} of {len(tasks)} runs are to be done", "green")
        return
    if not table_only:
        jobs = jobs or _devices(run.device)
        failed = _work(sweeping) if jobs == 1 else _share(sweeping, jobs)
    results = sweeping.rows()
    made = rows_of(found, results)
    verdict = ordering(found, results)
    if as_json:
        emit({"question": found.question, "table": made, "ordering": verdict, "failed": failed})
    elif md:
        lines = [" | ".join(row) for row in [made[0], ["---"] * len(made[0]), *made[1:]]]
        say("\n".join(f"| {line} |" for line in lines) + (f"\n\n{verdict}" if verdict else ""))
    else:
        show_table(table(made[0], made[1:], found.question))
        say(verdict)
    if failed:
        raise Failed("not everything could be done:\n" + "\n".join(failed))


def _work(sweeping: Sweeping) -> list[str]:
    from ..sweep import work

    try:
        with run_errors(f"what is measured stays; {AGAIN}"):
            return work(sweeping, remark)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {AGAIN}") from None


def _share(sweeping: Sweeping, jobs: int) -> list[str]:
    """The same command so many times, each with its own device or its share of the processor."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    words = [sys.executable, "-m", "unimim", *without(sys.argv[1:], "--jobs"), "--jobs", "1"]
    running: list[Any] = []
    for number in range(jobs):
        device = {"CUDA_VISIBLE_DEVICES": str(number)} if sweeping.run.device.startswith("cuda") else {}
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **device}
        running.append(subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL))
    try:
        codes = [process.wait() for process in running]
    except KeyboardInterrupt:
        for process in running:
            process.wait()
        raise Interrupted(f"stopped; {AGAIN}") from None
    if 75 in codes:
        raise Interrupted(f"stopped; {AGAIN}")
    return [f"{sum(code > 0 for code in codes)} of {jobs} workers failed; they said above why"] if any(codes) else []


def _devices(device: str) -> int:
    import torch

    return max(1, torch.cuda.device_count()) if device == "cuda" else 1
