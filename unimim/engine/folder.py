"""A run folder's own files: who writes into it, and how the run ended."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from .checkpoint import write_text

Status = Literal["running", "done", "preempted", "nonfinite", "data", "failed"]
EXIT_CODES: dict[Status, int] = {"done": 0, "preempted": 75, "nonfinite": 1, "data": 1, "failed": 1}


def write_status(folder: Path, status: Status, step: int | None, reason: str = "") -> None:
    """status.json, which says what torchrun's exit code does not: how the run ended, where, and whether to start it again.

    75 (EX_TEMPFAIL) is for a run that stopped on request and goes on when it is started again.
    """
    about = {"status": status, "step": step, "reason": reason, "exit_code": EXIT_CODES.get(status)}
    written = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": socket.gethostname(), "pid": os.getpid()}
    write_text(folder / "status.json", json.dumps(about | written, indent=1))


def read_status(folder: Path) -> dict[str, Any]:
    """What status.json says; {} if there is none."""
    path = folder / "status.json"
    status: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return status


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder for this process, which the system forgets when the process dies, however it dies.

    Raises ValueError that names the process that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"{folder} is being written by {_holder(file)}; wait for it, or use another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read() or "another process"
