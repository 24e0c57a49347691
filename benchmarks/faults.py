"""A training of two sharded processes, disturbed again and again; does it end as if nothing had happened?

    python benchmarks/faults.py --faults 200

Four of five faults hit processes while they start, step or write: one or both are killed, stopped (and killed a moment later,
as the watch or torchrun's agent would do), or asked to end. Every fifth then harms the checkpoints: a bit flips, a file is cut
or deleted, a half-written folder appears, LATEST lies. After each the same run is started again. It must go on from the newest
checkpoint that nothing harmed, and its final weights, AdamW state and losses must be, bit for bit, those of an undisturbed run.

A checkpoint is due at every step. That is agreed on a step late, so after a start the first comes at the second step, and
each is written during the next one: a fault of a process may cost INTERVAL + 1 steps, and one that harms the newest
checkpoint INTERVAL more.

The ranks are forks of one process that has loaded everything, because a fresh start takes seconds. So no agent of torchrun's
watches them: a rank that waits for one that died before the first step is killed here after PATIENCE seconds, and counted.
Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the number of threads is part of what must not change; and threads do not fork

import torch
import torch._dynamo  # what every rank would otherwise load anew
from safetensors.torch import load_file

from unimim import load
from unimim.engine.run import Run
from unimim.training import build, train_recipe

INTERVAL = 2
PATIENCE = 10.0
STRIKES: dict[str, tuple[signal.Signals, tuple[int, ...]]] = {
    "kill rank 0": (signal.SIGKILL, (0,)),
    "kill rank 1": (signal.SIGKILL, (1,)),
    "kill both": (signal.SIGKILL, (0, 1)),
    "stop rank 0": (signal.SIGSTOP, (0,)),
    "stop rank 1": (signal.SIGSTOP, (1,)),
    "terminate rank 0": (signal.SIGTERM, (0,)),
    "terminate rank 1": (signal.SIGTERM, (1,)),
    "terminate both": (signal.SIGTERM, (0, 1)),
}
HARMFUL = ("flip a bit", "cut a file", "delete a file")
HARMLESS = ("half-written folder", "lying LATEST")
RECIPE = (
    "student.image_size=16",
    "student.patch_size=4",
    "student.dim=16",
    "student.depth=2",
    "student.num_heads=2",
    "student.drop_path=0.1",
    "teacher.layers=[0,1]",
    "batch=8",
    "precision=float32",
)
DATA = "shapes:train=32,size=16"
STEPS_PER_EPOCH = 4


class Launch:
    """Two ranks of one run folder, forked; they tell what they do in a file of their own."""

    def __init__(self, out: Path, steps: int, checkpoint_minutes: float) -> None:
        self.path = out.with_name(f"{out.name}-launch.log")
        self.path.write_text("")
        port, fork = _free_port(), multiprocessing.get_context("fork")
        run = Run(out=out, device="cpu", workers=0, parallel="fsdp", log_every=1, checkpoint_minutes=checkpoint_minutes)
        arguments = [(rank, port, self.path, run, steps) for rank in (0, 1)]
        self.ranks: list[BaseProcess] = [fork.Process(target=train_rank, args=each, daemon=True) for each in arguments]
        for rank in self.ranks:
            rank.start()
        self.outlived = False

    @property
    def steps(self) -> list[int]:
        """Done by this launch."""
        return [int(step) for step in re.findall(r" step (\d+)/", self.path.read_text())]

    @property
    def resumed(self) -> int | None:
        """The step it went on from; None if it did not come so far."""
        found = re.search(r"going on from step (\d+)", self.path.read_text())
        return int(found[1]) if found else 0 if self.steps else None

    def wait_for(self, steps: int) -> None:
        while len(self.steps) < steps:
            if not all(rank.is_alive() for rank in self.ranks):
                raise RuntimeError(f"a rank ended by itself:\n{self.path.read_text()}")
            time.sleep(0.002)

    def send(self, number: signal.Signals, ranks: tuple[int, ...]) -> None:
        for rank in ranks:
            os.kill(self.ranks[rank].pid or 0, number)

    def join(self) -> list[int | None]:
        """Exit codes.

        A rank that has not taken a step, and outlives one that failed, is killed after PATIENCE seconds, as torchrun's
        agent would do.
        """
        failed, told, silent_since = None, 0, time.monotonic()
        while any(rank.is_alive() for rank in self.ranks):
            time.sleep(0.005)
            now = time.monotonic()
            if (size := self.path.stat().st_size) > told:
                told, silent_since = size, now
            if failed is None and any(rank.exitcode for rank in self.ranks):
                failed = now
            self.outlived = failed is not None and now - failed > PATIENCE and not self.steps
            if self.outlived or now - silent_since > 120:
                for rank in self.ranks:
                    rank.kill()
                    rank.join()
                if not self.outlived:
                    raise RuntimeError(f"a rank does not end:\n{self.path.read_text()}")
        return [rank.exitcode for rank in self.ranks]


def train_rank(rank: int, port: int, log: Path, run: Run, steps: int) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)  # makes torch's pool of threads anew before two threads find it broken by the fork
    about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in about.items()})
    train_recipe(load("data2vec-micro", [*RECIPE, f"epochs={steps / STEPS_PER_EPOCH}"]), DATA, run)


@dataclass
class Campaign:
    """The disturbed run: what was done to it, and what that cost."""

    out: Path
    steps: int
    draws: random.Random
    injected: Counter[str] = field(default_factory=Counter)
    lost: dict[str, list[int]] = field(default_factory=lambda: {"asked": [], "process": [], "disk": []})
    recovered: int = 0
    launches: int = 0
    outlived: int = 0
    reached: int = 0
    pending: list[str] = field(default_factory=list)
    harmed: set[tuple[int, int]] = field(default_factory=set)

    def launch(self, strike: str = "") -> None:
        """Start the run, and unless it may end, strike it."""
        expected = max(map(step_of, self.whole()), default=0)
        launch = Launch(self.out, self.steps, 1e-6)
        self.launches += 1
        if strike:
            number, ranks = STRIKES[strike]
            steps = self.draws.randint(0, 6)
            launch.wait_for(steps)
            time.sleep(self.draws.uniform(0, 0.1 if steps else 1.0))
            launch.send(number, ranks)
            if number == signal.SIGSTOP:
                time.sleep(0.2)
                launch.send(signal.SIGKILL, (0, 1))
        codes = launch.join()
        self.outlived += launch.outlived
        if not strike and codes != [0, 0]:
            raise RuntimeError(f"the run did not end well:\n{launch.path.read_text()}")
        if launch.resumed is not None:
            self.account(launch.resumed, expected)
            self.reached = max([launch.resumed, *launch.steps])
        if strike:
            self.note(strike)

    def account(self, resumed: int, expected: int) -> None:
        """Faults since the last start that came so far: was the right checkpoint taken, and how many steps are lost?"""
        if resumed == expected:
            self.recovered += len(self.pending)
        if self.pending:
            asked = all(fault.startswith("terminate") for fault in self.pending)
            cause = "disk" if {*self.pending} & {*HARMFUL} else "asked" if asked else "process"
            self.lost[cause].append(self.reached - resumed)
        self.pending = []

    def note(self, fault: str) -> None:
        self.injected[fault] += 1
        self.pending.append(fault)

    def whole(self) -> list[Path]:
        """Checkpoints that nothing harmed, newest first."""
        return [path for path in sorted(self.checkpoints.glob("step-*"), reverse=True) if mark(path) not in self.harmed]

    def harm(self, kind: str) -> None:
        whole = self.whole()
        bare = len(whole) < 2 or step_of(whole[0]) - step_of(whole[1]) > INTERVAL or {*self.pending} & {*HARMFUL}
        if kind in HARMFUL and bare:  # what would be lost then is more than two checkpoints can prevent
            kind = HARMLESS[0]
        if kind in HARMFUL:
            file = self.draws.choice(sorted(path for path in whole[0].rglob("*") if path.is_file()))
            content = bytearray(file.read_bytes())
            position = self.draws.randrange(len(content))
            content[position] ^= 1 << self.draws.randrange(8)
            file.write_bytes(content if kind == "flip a bit" else content[:position])
            if kind == "delete a file":
                file.unlink()
            self.harmed.add(mark(whole[0]))
        elif kind == "half-written folder":
            half = self.checkpoints / f".tmp-step-{self.reached + 1:08d}" / "state"
            half.mkdir(parents=True, exist_ok=True)
            (half / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
        else:
            (self.checkpoints / "LATEST").write_text("step-99999999")
        self.note(kind)

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"


def mark(folder: Path) -> tuple[int, int]:
    """Of this very folder, not of another that takes its name later."""
    about = folder.stat()
    return about.st_ino, about.st_mtime_ns


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def outcome(out: Path, steps: int) -> tuple[object, object]:
    """The final state's tensors, shard for shard, as bytes; and every step's numbers, in order."""
    files = sorted((out / "checkpoints" / f"step-{steps:08d}").rglob("*.safetensors"))
    tensors = {(file.name, name): tensor for file in files for name, tensor in load_file(file).items()}
    state = {key: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for key, tensor in tensors.items()}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return state, [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def deck(faults: int, draws: random.Random) -> list[tuple[str, str]]:
    """(fault of a process, fault of the disk after it or none), in random order; all kinds as often as can be."""
    on_disk = faults // 5
    strikes = [[*STRIKES][number % len(STRIKES)] for number in range(faults - on_disk)]
    harms = [(*HARMFUL, *HARMLESS)[number % 5] for number in range(on_disk)]
    harms += [""] * (len(strikes) - on_disk)
    draws.shuffle(strikes)
    draws.shuffle(harms)
    return [*zip(strikes, harms, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=39)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept afterwards (default: a temporary one)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    steps = 4 * options.faults
    warm(steps)
    started = time.monotonic()
    calm = Launch(folder / "calm", steps, 10.0)
    if calm.join() != [0, 0]:
        raise RuntimeError(calm.path.read_text())
    campaign = Campaign(folder / "disturbed", steps, random.Random(options.seed))
    for strike, harm in deck(options.faults, campaign.draws):
        campaign.launch(strike)
        if harm:
            campaign.harm(harm)
    campaign.launch()
    same = outcome(folder / "calm", steps) == outcome(folder / "disturbed", steps)
    most = {cause: max(lost, default=0) for cause, lost in campaign.lost.items()}
    mean = {cause: sum(lost) / max(1, len(lost)) for cause, lost in campaign.lost.items()}
    injected = sum(campaign.injected.values())
    print(
        f"R1 faults injected {injected}, recovered {campaign.recovered}, restarts {campaign.launches - 1}, steps lost "
        f"max (mean) SIGTERM {most['asked']} ({mean['asked']:.1f}), process {most['process']} ({mean['process']:.1f}) "
        f"of {INTERVAL + 1} allowed, disk {most['disk']} ({mean['disk']:.1f}) of {2 * INTERVAL + 1}, "
        f"final state bitwise equal {same}"
    )
    print(", ".join(f"{kind} {count}" for kind, count in sorted(campaign.injected.items())))
    print(f"launches in which a rank waited for a dead one and was killed {campaign.outlived}")
    print(f"{steps} steps, {time.monotonic() - started:.0f} s")
    recovered = campaign.recovered == injected == options.faults
    within = most["asked"] == 0 and most["process"] <= INTERVAL + 1 and most["disk"] <= 2 * INTERVAL + 1
    if options.folder is None:
        shutil.rmtree(folder)
    return 0 if recovered and within and same else 1


def warm(steps: int) -> None:
    """Load what the ranks need, without computing anything: autograd's threads would not survive the fork."""
    build(load("data2vec-micro", [*RECIPE, f"epochs={steps / STEPS_PER_EPOCH}"]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
