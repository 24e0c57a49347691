"""Hangs: every process says what it is doing, and one that does it for too long ends the run, with a name for the cause.

A stopped or dead process cannot speak for itself, so all of them show their beats to each other in the store of the
process group. A beat is (count, step, phase, collectives, ...); the count rises every second while the process lives. All
processes make the same collective calls in the same order, so of those in one phase of one step, the one that has made the
fewest is the one that the others wait for, whatever it does instead.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch.distributed as dist

from ..world import rank, world_size

Phase = Literal["setup", "data", "step", "save"]
ORDER: tuple[Phase, ...] = ("setup", "data", "step", "save")
PATIENCE = {"setup": 3.0}
"""Phases that may take longer than the limit, and how many times."""


class Watch:
    """Ends this process, with exit code 1, when a phase lasts longer than `limit` seconds.

    on_hang is told, by the lowest process that still answers, what hangs where; stacks of all threads go to
    folder/hang-rank-N.txt.
    """

    def __init__(self, limit: float, folder: Path, on_hang: Callable[[str], None]) -> None:
        self.limit, self.folder, self.on_hang = limit, folder, on_hang
        self.now: tuple[int, Phase, float] = (0, "setup", time.monotonic())
        self.pause = min(1.0, limit / 8)
        self._store: Any = _store() if world_size() > 1 else None
        self._ended = threading.Event()
        self._count = 0

    def enter(self, phase: Phase, step: int) -> None:
        """This process begins `phase` of `step`."""
        self.now = (step, phase, time.monotonic())

    def __enter__(self) -> Self:
        self._beat()
        threading.Thread(target=self._run, name="watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self.pause):
            self._beat()
            step, phase, since = self.now
            if time.monotonic() - since > self.limit * PATIENCE.get(phase, 1.0):
                self._end(step, phase)

    def _beat(self) -> None:
        self._count += 1
        if self._store is not None:
            with suppress(Exception):  # the host of the store may be the one that died
                self._store.set(f"beat/{rank()}", json.dumps(self._own()))

    def _own(self) -> list[Any]:
        step, phase, _ = self.now
        return [self._count, step, phase, _collectives(), os.getpid(), socket.gethostname()]

    def _end(self, step: int, phase: Phase) -> None:
        """Say who hangs, end what cannot end itself, and leave without asking the stuck main thread."""
        before = self._beats()
        self._wait()
        after = self._beats()
        others = [number for number in range(world_size()) if number != rank()]
        silent = [number for number in others if after.get(number) == before.get(number)]
        alive = {rank(): self._own()} | {number: after[number] for number in others if number not in silent}
        at = {n: (reached, ORDER.index(doing), calls) for n, (_, reached, doing, calls, *_) in sorted(alive.items())}
        last = min(at.values())
        behind = [number for number, place in at.items() if place == last]
        where = f"in phase {phase} of step {step}"
        if silent:
            who = f"process {_listed(silent)} of {world_size()} does not answer (stopped, or its machine is gone)"
        else:
            who = f"process {_listed(behind)} of {world_size()} is behind, in phase {ORDER[last[1]]} of step {last[0]}"
        with suppress(OSError), (self.folder / f"hang-rank-{rank()}.txt").open("w") as file:
            faulthandler.dump_traceback(file)
        with suppress(Exception):  # by every process: the end of the first to say it is an error for the others
            self.on_hang(f"nothing has moved for {self.limit:g} seconds {where}: {who}; stacks in {self.folder}")
        for *_, process, host in (after[number] for number in silent if number in after):
            if host == socket.gethostname():
                with suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)

    def _wait(self) -> None:
        """Long enough for every live process to beat again."""
        for _ in range(4):
            self._beat()
            time.sleep(self.pause)

    def _beats(self) -> dict[int, list[Any]]:
        """The last beat of every process that can be asked for it."""
        beats: dict[int, list[Any]] = {}
        for number in range(world_size() if self._store is not None else 0):
            with suppress(Exception):
                if self._store.check([f"beat/{number}"]):  # get would wait for it
                    beats[number] = json.loads(self._store.get(f"beat/{number}"))
        return beats


def _collectives() -> int:
    """Collective calls this process has begun in the group that trains."""
    if world_size() == 1:
        return 0
    group: Any = dist.distributed_c10d._get_default_group()
    begun: int = group._get_sequence_number_for_group()
    return begun


def _store() -> Any:
    """A connection of our own to the group's store, for the watch's thread."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    client: Any = dist.TCPStore  # type: ignore[attr-defined]
    return client(*address, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
