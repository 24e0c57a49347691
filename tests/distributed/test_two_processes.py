"""Two processes over gloo compute what one computes at the same global batch: losses, and weights after nine steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.engine.toys import SMOOTH

from .worker import main

ROOT = Path(__file__).parents[2]
CASES = {
    "mae-micro": (SMOOTH,),
    "beit-micro": (SMOOTH, "student.drop_path=0"),
    "data2vec-micro": (SMOOTH, "norm=batch"),
}


def launch(*arguments: str) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        "-m",
        "tests.distributed.worker",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_equal_one(tmp_path: Path, name: str) -> None:
    launch(name, str(tmp_path / "two"), *CASES[name])
    main(name, tmp_path / "one", *CASES[name])
    one, two = (torch.load(tmp_path / folder / "state.pt", weights_only=True) for folder in ("one", "two"))
    curves = [
        [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("one", "two")
    ]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in curves[1]] == pytest.approx([row[key] for row in curves[0]], rel=2e-5)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=5e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
