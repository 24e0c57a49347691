"""Run with faultfs preloaded: ends a process, or fills the disk, at every call of a save, and counts what is left.

One process loads torch; every attempt is a fork of it. The result is a line of JSON on standard output.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from unimim.engine.checkpoint import CheckpointError, Checkpoints

COUNT, KILL, FULL = range(3)
CLAIMED, REFUSED = 10, 11
"""Exit codes of `second`: the save ended as if it had worked, or with CheckpointError."""
SHIM = ctypes.CDLL(os.environ["LD_PRELOAD"])


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {f"weight{part}": torch.full((300,), float(step + part)) for part in range(3)}


def save(folder: Path, step: int) -> None:
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(step, tensors(step), {"token": tensors(step)["weight0"]}, {"loss": 1.0 / step})
    checkpoints.wait()


def second(folder: Path, at: int, mode: int, log: Path) -> int:
    """Save step 2 over step 1 while the shim does its worst."""
    with log.open("w") as file:
        SHIM.faultfs_arm(str(folder).encode(), at, mode, file.fileno())
        try:
            save(folder, 2)
        except CheckpointError:
            return REFUSED
        finally:
            SHIM.faultfs_disarm()
    return CLAIMED


def usable(folder: Path) -> int:
    """The step a new process finds, which must load as it was saved; then the next save must work."""
    checkpoints = Checkpoints(folder, keep=1)
    found = checkpoints.newest()
    assert found is not None
    state = {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}
    checkpoints.load(found, state)
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors(found.step).items())
    assert torch.equal(load_file(found.path / "student.safetensors")["token"], tensors(found.step)["weight0"])
    assert found.meta == {"loss": 1.0 / found.step}
    save(folder, 3)
    after = Checkpoints(folder).newest()
    assert after is not None
    assert after.step == 3
    assert not list(folder.glob(".tmp-*step-*"))
    return found.step


def forked(work: Callable[[], int]) -> int:
    """What `work` gives in a child (0 to 255), or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def unsynced(events: list[list[str]], folder: Path) -> tuple[int, int]:
    """(renames that gave a name to a file whose last change was not followed by fsync, fsyncs of folders)."""
    last: dict[str, str] = {}
    bad = folders = 0
    for call, path, *to in events:
        if call == "rename":
            target = Path(to[0])
            files = [file for file in target.rglob("*") if file.is_file()] if target.is_dir() else [target]
            sources = [path if file == target else str(Path(path) / file.relative_to(target)) for file in files]
            bad += any(last.get(source) != "fsync" for source in sources if target.exists())
        seen = Path(path.replace("/.tmp-step-", "/step-"))
        folders += call == "fsync" and seen.is_dir()
        last |= {to[0]: last.get(path, "")} if to else {path: call}
    return bad, folders


def main(scratch: Path) -> None:
    template, log = scratch / "template", scratch / "log"
    assert forked(lambda: save(template, 1) or 0) == 0

    def attempt(name: str, at: int, mode: int) -> tuple[int, Path]:
        folder = scratch / name / "checkpoints"
        shutil.copytree(template, folder)
        return forked(lambda: second(folder, at, mode, log)), folder

    code, folder = attempt("count", 0, COUNT)
    assert code == CLAIMED
    events = [line.split()[1:] for line in log.read_text().splitlines()]
    bad, folders = unsynced(events, folder)
    result = {"calls": len(events), "unsynced": bad, "folder_fsyncs": folders}
    result |= {"killed": 0, "old": 0, "new": 0, "full": 0, "full_usable": 0, "claimed": 0}
    for at in range(1, len(events) + 1):
        code, folder = attempt(f"kill-{at}", at, KILL)
        result["killed"] += code == -signal.SIGKILL
        step = forked(lambda folder=folder: usable(folder))
        result["old"] += step == 1
        result["new"] += step == 2
        code, folder = attempt(f"full-{at}", at, FULL)
        result["full"] += code in (CLAIMED, REFUSED)
        step = forked(lambda folder=folder: usable(folder))
        result["full_usable"] += step in (1, 2)
        result["claimed"] += code == CLAIMED and step != 2
    print(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
