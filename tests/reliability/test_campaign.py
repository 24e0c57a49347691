"""Two sharded processes, killed, stopped, asked to end and robbed of checkpoints 39 times, end as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="forks ranks that have loaded torch")
def test_39_faults_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "benchmarks/faults.py", "--faults", "39", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "UNIMIM_PLUGINS": "none"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    with capsys.disabled():
        print(f"\n{done.stdout.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "faults injected 39, recovered 39" in done.stdout
    assert "final state bitwise equal True" in done.stdout
