"""A save that is killed, or meets a full disk, at any of its calls leaves a whole checkpoint, old or new.

faultfs.c sees calls through the C library. The file of the student is renamed once, inside the hidden folder, by a raw system
call of safetensors', which is therefore no crash point here; its open, writes and fsync are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library the way Linux does")
def test_a_save_may_end_at_any_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc)")
    shim = tmp_path / "faultfs.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", shim, HERE / "faultfs.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.crashes", str(tmp_path)],
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout)
    points, whole = counts["calls"], counts["old"] + counts["new"]
    with capsys.disabled():
        print(
            f"\nR2 crash points {points}, usable {whole} (old {counts['old']}, new {counts['new']}); "
            f"ENOSPC points {points}, usable {counts['full_usable']}, claimed success {counts['claimed']}; "
            f"unsynced renames {counts['unsynced']}; dir fsyncs {counts['folder_fsyncs']}"
        )
    assert points > 20
    assert counts["killed"] == counts["full"] == points, done.stderr[-4000:]
    assert whole == counts["full_usable"] == points, done.stderr[-4000:]
    assert counts["old"] > 0
    assert counts["new"] > 0
    assert counts["claimed"] == counts["unsynced"] == 0
    assert counts["folder_fsyncs"] >= 2
