"""Real runs of the command line, watched from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONG = ("mae-micro", "student.image_size=16", "student.patch_size=4", "student.dim=16", "student.depth=1")
LONG += ("student.num_heads=2", "head.dim=16", "head.depth=1", "head.num_heads=2", "batch=8", "epochs=5000")


def train(
    out: Path, *more: str, torchrun: bool = False, procs: int = 2, plugin: Path | None = None
) -> subprocess.Popen[bytes]:
    """A run that would take hours, in its own process group; its messages go to OUT.log.

    plugin: the package of an installed distribution of that name, which the run may use.
    """
    command = [sys.executable, "-m", "unimim"]
    if torchrun:
        handed = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={procs}"]
        command += [f"--signals-to-handle={handed}", "-m", "unimim"]
    more = (*more, *([] if torchrun or procs == 1 else ["--procs", str(procs)]))
    command += [
        "train",
        *LONG,
        "--data",
        "shapes:train=64,val=10,size=16",
        "--out",
        str(out),
        "--log-every",
        "5",
        *more,
    ]
    path = [str(ROOT), *([str(plugin.parent)] if plugin else [])]
    allowed = plugin.name if plugin else "none"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path), "UNIMIM_PLUGINS": allowed}
    with out.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_for(what: Callable[[], bool], seconds: float = 90.0) -> bool:
    """Whether it came true in that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.1)
    return False


def begun(out: Path) -> bool:
    """Something was logged, so the loop is running."""
    return (out / "metrics.jsonl").exists() and bool((out / "metrics.jsonl").read_text().strip())


def alive(mark: str) -> list[int]:
    """Processes, zombies aside, with `mark` in their command line; loader workers have that of their parent."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def ranks(mark: str) -> dict[int, int]:
    """{rank: process} of the training processes (their agent and their loader workers left out)."""
    found = {}
    for number in sorted(alive(mark)):
        try:
            told = (Path("/proc") / str(number) / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank: Sequence[bytes] = [line[5:] for line in told if line.startswith(b"RANK=")]
        if rank and int(rank[0]) not in found:
            found[int(rank[0])] = number
    return found
