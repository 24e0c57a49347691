"""Joining the processes that srun started itself, without torchrun."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import MutableMapping

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
"""What an agent must hand on to its processes; torchrun dies of SIGUSR1 and leaves them behind unless told."""
FIRST_PORT, PORTS = 20000, 10000
"""Ports a job may meet at; the number of the job and step chooses one, so that two on one machine seldom want the same."""


def join_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Inside a Slurm step of several tasks, set what torchrun would have set; what is set already stays.

    RANK = SLURM_PROCID, WORLD_SIZE = SLURM_STEP_NUM_TASKS, LOCAL_RANK = SLURM_LOCALID, MASTER_ADDR = the first host of the
    step, MASTER_PORT from the numbers of job and step. Does nothing if RANK or WORLD_SIZE is set, for one task, and in the
    batch script or a shell on the login node.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    several = int(environment.get("SLURM_NTASKS", "1")) > 1 and int(tasks) > 1
    if not several or "SLURM_PROCID" not in environment or "RANK" in environment or "WORLD_SIZE" in environment:
        return
    hosts = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    number = int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", "0"))
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": first_host(hosts),
        "MASTER_PORT": str(FIRST_PORT + number % PORTS),
    }
    for name, value in found.items():
        environment.setdefault(name, value)


def first_host(hosts: str) -> str:
    """The first name of a Slurm host list, e.g. node01 of "node[01-03,07],big5".

    Asks scontrol where it is installed. Raises ValueError if the list cannot be read.
    """
    if shutil.which("scontrol"):
        said = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, timeout=30)
        if said.returncode == 0 and said.stdout.strip():
            return said.stdout.split()[0]
    first = re.match(r"(?:[\w.-]|\[\d+[\d,-]*\])+(?=,|$)", hosts)
    if first is None:
        raise ValueError(f"cannot read the host list {hosts!r} of Slurm; set MASTER_ADDR and MASTER_PORT")
    return re.sub(r"\[(\d+)[\d,-]*\]", r"\1", first[0])
