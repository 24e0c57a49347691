"""Cases measured in processes of their own, which take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from ..engine.distributed import launch, process_group
from ..engine.run import Run
from ..world import rank, world_size
from .cost import Case, Cost, Timing
from .workload import Workload

MODULE = "unimim.evaluation.turns"
WARMUP = 3
"""Steps that are not counted: the first ones also make optimizer state, gradients and kernels."""
PATIENCE = 10.0
"""Seconds between two words about how far it is, and those an idle process gets to end."""


class Unmeasured(RuntimeError):
    """A process ended before it had answered."""


def measure(
    cases: Sequence[Case], steps: int = 20, warmup: int = WARMUP, say: Callable[[str], None] = lambda text: None
) -> list[Cost]:
    """The cost of each case, from `steps` steps in fresh processes that stand by side by side and take turns.

    All of them hold their memory at once; measure one case at a time where that is too much.
    Raises ValueError if a case cannot be built, Unmeasured if its process ends.
    """
    with tempfile.TemporaryDirectory(prefix="unimim-bench-") as name, ExitStack() as stack:
        workers = [stack.enter_context(Worker(case, Path(name) / f"{i}.json")) for i, case in enumerate(cases)]
        for worker in workers:  # one after the other: what building needs must not slow another's building
            worker.ask("build")
        said = time.monotonic()
        for number in range(-warmup, steps):
            for worker in workers if number % 2 else reversed(workers):
                worker.ask("step" if number >= 0 else "warm")
            if time.monotonic() - said > PATIENCE:
                said = time.monotonic()
                say(f"{', '.join(case.recipe.name for case in cases)}: {max(number + 1, 0)} of {steps} steps")
        return [Cost.of(worker.ask("cost")) for worker in workers]


class Worker:
    """The process that measures one case, or the one that looks after its several. It does what it is asked, no more."""

    def __init__(self, case: Case, path: Path) -> None:
        self.case, self.log = case, path.with_suffix(".log")
        path.write_text(json.dumps(case.data()), encoding="utf-8")
        with self.log.open("w", encoding="utf-8") as log:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            program = [case.script] if case.script else ["-m", MODULE]
            self.process = subprocess.Popen([sys.executable, *program, str(path)], text=True, **pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.close()
            self.process.wait(PATIENCE if error is None else 1)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.terminate()  # launched processes are ended by the one that looks after them
            self.process.wait()
        self.process.stdout.close()

    def ask(self, what: str) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(f"{what}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            tail = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise Unmeasured(f"{self.case.recipe.name}: its process {how}{''.join(f': {text}' for text in tail)}")
        answer = json.loads(line)
        if isinstance(answer, dict) and "problem" in answer:
            raise ValueError(f"{self.case.recipe.name}: {answer['problem']}")
        return answer


def main(path: str, make: type[Workload] = Workload) -> None:
    """The other side of `Worker`: in its process, or in each of those that it launches."""
    case = Case.of(json.loads(Path(path).read_text(encoding="utf-8")))
    if case.procs > 1 and "RANK" not in os.environ:
        launch(case.procs, [path], MODULE)
        return
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(value: Any) -> None:
        if rank() == 0:
            print(json.dumps(value), file=answers, flush=True)

    with process_group(Run(out=Path(path).parent, device=case.device)) as device:
        _obey(partial(make, case, device), answer)


def _obey(make: Callable[[], Workload], answer: Callable[[Any], None]) -> None:
    timings: list[Timing] = []
    workload = None
    for asked in _orders():
        if asked == "build":
            try:
                workload = make()
            except ValueError as error:
                answer({"problem": str(error)})
                return
            answer("built")
            continue
        assert workload
        if asked == "cost":
            answer(workload.cost(timings).data())
            continue
        timing = workload.timed()
        if asked == "step":
            timings.append(timing)
        answer(asdict(timing))


def _orders() -> Iterator[str]:
    """Lines of stdin, which the first process reads for all."""
    while True:
        said = [sys.stdin.readline().strip() if rank() == 0 else ""]
        if world_size() > 1:
            dist.broadcast_object_list(said)
        if not said[0]:
            return
        yield said[0]


if __name__ == "__main__":
    main(sys.argv[1])
