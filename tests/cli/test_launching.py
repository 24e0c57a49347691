"""launch slurm: the script as Slurm would run it, with small programs in place of srun, scontrol and sbatch."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from unimim.cli.launching import SIGNALS

from .conftest import Unimim

HOSTILE = """it's a "run" $HOME `id` \\ & ;*"""


@dataclass(frozen=True)
class Job:
    """What became of a batch script: its exit code, what it printed, and the calls of srun and scontrol."""

    code: int
    out: str
    srun: list[str]
    scontrol: list[str]


Sbatch = Callable[..., Job]


@pytest.fixture
def sbatch(tmp_path: Path) -> Sbatch:
    """sbatch(script, status=what the run leaves, code=how srun ends)."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def run(script: str, status: Path, leaves: str | None, code: int) -> Job:
        for name in ("srun", "scontrol"):
            (programs / f"{name}.calls").unlink(missing_ok=True)
        record = 'for word in "$@"; do printf "%s\\0" "$word"; done >> "$0.calls"\n'
        folder, file = shlex.quote(str(status.parent)), shlex.quote(str(status))
        write = f"mkdir -p {folder}\nprintf %s {shlex.quote(leaves or '')} > {file}\n"
        shims = {
            "srun": f"{record}{write if leaves is not None else ''}exit {code}\n",
            "scontrol": f'{record}[ "$1" = show ] && printf "first\\nsecond\\n"\nexit 0\n',
        }
        for name, text in shims.items():
            (programs / name).write_text(f"#!/bin/bash\n{text}")
            (programs / name).chmod(0o755)
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NODELIST": "n[1-2]",
        }
        done = subprocess.run(
            ["bash"], input=script, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60
        )
        calls = [
            path.read_text().split("\0")[:-1] if path.exists() else []
            for path in (programs / "srun.calls", programs / "scontrol.calls")
        ]
        return Job(done.returncode, done.stdout, *calls)

    return run


def launch(unimim: Unimim, out: Path, *more: object) -> str:
    ran = unimim(
        "launch", "slurm", "mae-micro", "--data", "shapes", "--out", out, "--nodes", 2, "--gpus-per-node", 4, *more
    )
    assert ran.code == 0, ran.err
    return ran.out


def status(word: str) -> str:
    return json.dumps({"status": word, "step": 7})


def test_the_script_starts_torchrun_on_every_node(unimim: Unimim, sbatch: Sbatch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    text = launch(unimim, out, "batch=64", "--time", "1-12:00:00", "--partition", "gpu,big", "--micro-batch", 2)
    directives = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "--job-name=unimim-mae-micro",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=4",
        "--cpus-per-task=36",
        "--time=1-12:00:00",
        "--partition=gpu,big",
        "--output=slurm-%j.out",
        "--open-mode=append",
        "--requeue",
        "--signal=USR1@120",
    ]
    job = sbatch(text, out / "status.json", status("done"), 0)
    assert (job.code, job.out) == (0, "job 12345: done\n")
    assert shlex.join(job.srun) == (
        "--wait=60 torchrun --nnodes 2 --nproc-per-node 4 --max-restarts 0 --rdzv-id 12345 --rdzv-backend c10d "
        f"--rdzv-endpoint first:22345 --signals-to-handle {SIGNALS} -m unimim train mae-micro batch=64 --data shapes "
        f"--out {out} --workers 8 --micro-batch 2"
    )
    assert job.scontrol == ["show", "hostnames", "n[1-2]"]


@pytest.mark.parametrize("name", ["run", HOSTILE])
@pytest.mark.parametrize(
    ("leaves", "code", "ends", "said", "requeued"),
    [
        ("done", 0, 0, "done", False),
        (None, 0, 0, "done", False),  # trained before, nothing was written
        ("preempted", 1, 0, "preempted", True),
        ("failed", 1, 1, "failed", False),
        ("nonfinite", 1, 1, "nonfinite", False),
        (None, 1, 1, "failed", False),
    ],
)
def test_only_a_preempted_run_goes_back_into_the_queue(
    unimim: Unimim,
    sbatch: Sbatch,
    tmp_path: Path,
    name: str,
    leaves: str | None,
    code: int,
    ends: int,
    said: str,
    requeued: bool,
) -> None:
    out = tmp_path / name
    job = sbatch(launch(unimim, out), out / "status.json", leaves and status(leaves), code)
    assert (job.code, job.out) == (ends, f"job 12345: {said}\n")
    assert (job.scontrol[-2:] == ["requeue", "12345"]) is requeued


def test_the_status_of_an_earlier_attempt_does_not_count(unimim: Unimim, sbatch: Sbatch, tmp_path: Path) -> None:
    path = tmp_path / "run" / "status.json"
    path.parent.mkdir()
    path.write_text(status("preempted"))
    job = sbatch(launch(unimim, path.parent), path, None, 1)
    assert (job.code, job.out) == (1, "job 12345: failed\n")
    assert "requeue" not in job.scontrol


def test_a_status_that_cannot_be_read_is_a_failure(unimim: Unimim, sbatch: Sbatch, tmp_path: Path) -> None:
    job = sbatch(launch(unimim, tmp_path / "run"), tmp_path / "run" / "status.json", "{half", 1)
    assert job.code == 1
    assert "requeue" not in job.scontrol


def test_hostile_words_arrive_as_they_are(unimim: Unimim, sbatch: Sbatch, tmp_path: Path) -> None:
    out = tmp_path / HOSTILE
    ran = unimim("launch", "slurm", "mae-micro", f"title={json.dumps(HOSTILE)}", "--data", f"-/{HOSTILE}", "--out", out)
    assert ran.code == 0, ran.err
    assert subprocess.run(["bash", "-n"], input=ran.out, text=True).returncode == 0
    job = sbatch(ran.out, out / "status.json", status("done"), 0)
    assert job.code == 0
    assert job.srun[job.srun.index("train") :] == [
        "train", "mae-micro", f"title={json.dumps(HOSTILE)}", "--data", f"-/{HOSTILE}", "--out", str(out), "--workers", "8",
    ]  # fmt: skip
    assert not [line for line in ran.out.splitlines() if line.startswith("#SBATCH") and "$" in line]


def test_submit_hands_the_script_to_sbatch(unimim: Unimim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = launch(unimim, tmp_path / "run")
    (tmp_path / "sbatch").write_text('#!/bin/bash\ncat > "$0.script"\necho Submitted batch job 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert launch(unimim, tmp_path / "run", "--submit") == "Submitted batch job 7\n"
    assert (tmp_path / "sbatch.script").read_text() == text.rstrip("\n") + "\n"
    (tmp_path / "sbatch").write_text("#!/bin/bash\necho no such partition >&2\nexit 1\n")
    ran = unimim("launch", "slurm", "mae-micro", "--data", "shapes", "--out", tmp_path / "run", "--submit")
    assert (ran.code, ran.err) == (1, "error: sbatch refused the script: no such partition\n")


def test_every_problem_at_once(unimim: Unimim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    more = ["--nodes", 3, "--time", "soon", "--partition", "a b", "--submit", "--data", "a\x1b[1m"]
    ran = unimim("launch", "slurm", "mae-micro", *more)
    assert ran.code == 2
    assert ran.err.splitlines() == [
        "error: 6 problems",
        "  --nodes, --gpus-per-node: batch 256 does not divide over 3 GPUs",
        "  --out is missing: the folder to write, new or of a run to go on with",
        "  --time: 'soon' is none of Slurm's forms, e.g. 90 (minutes), 12:00:00 or 1-12:00:00",
        "  --partition: 'a b' is no name of a partition",
        "  --submit: there is no sbatch on this machine; without --submit the script is printed",
        "  'a\\x1b[1m' holds control characters",
    ]
