"""srun without torchrun: what Slurm sets becomes what a process group reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unimim.engine.slurm import first_host, join_slurm

STEP = {
    "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3",
    "SLURM_JOB_ID": "4212345", "SLURM_STEP_ID": "2", "SLURM_JOB_NODELIST": "other9", "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip
ADDED = {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "MASTER_ADDR": "gpu07", "MASTER_PORT": "22347"}


@pytest.fixture(autouse=True)
def no_scontrol(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def joined(**environment: str) -> dict[str, str]:
    """What is added to these variables."""
    after = dict(environment)
    join_slurm(after)
    assert {name: after[name] for name in environment} == environment
    return {name: value for name, value in after.items() if name not in environment}


def test_a_task_of_a_step_gets_its_place() -> None:
    assert joined(**STEP) == ADDED
    assert joined(**STEP, MASTER_ADDR="10.0.0.1") == {k: v for k, v in ADDED.items() if k != "MASTER_ADDR"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**STEP, "RANK": "0", "WORLD_SIZE": "8"},  # torchrun's own
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},  # srun --ntasks 1 inside a larger job
        {**STEP, "SLURM_NTASKS": "1"},
        {name: value for name, value in STEP.items() if not name.startswith("SLURM_STEP")},  # the batch script
        {name: value for name, value in STEP.items() if name != "SLURM_PROCID"},
    ],
)
def test_everywhere_else_nothing_is_set(environment: dict[str, str]) -> None:
    assert joined(**environment) == {}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[01-03,07],big5", "node01"),
        ("node[12]", "node12"),
        ("rack[3-4]-node[10,20-30].cluster,other", "rack3-node10.cluster"),
    ],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize("hosts", ["", "node[", "node[a-b]", "node 1"])
def test_a_list_that_cannot_be_read_says_what_to_set(hosts: str) -> None:
    with pytest.raises(ValueError, match="set MASTER_ADDR and MASTER_PORT"):
        first_host(hosts)


def test_scontrol_is_asked_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && echo "told-$3"\necho last\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    assert first_host("n[1-2]") == "told-n[1-2]"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert first_host("n[1-2]") == "n1"
