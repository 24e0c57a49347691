"""R7. Signals to stop, under the real agent: the run is saved, says so, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from unimim.engine.checkpoint import verify

from .processes import alive, begun, train, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

CASES = {
    "SIGTERM": (True, lambda pid: os.kill(pid, signal.SIGTERM)),
    "SIGINT": (False, lambda pid: os.kill(pid, signal.SIGINT)),
    "SIGUSR1": (False, lambda pid: os.kill(pid, signal.SIGUSR1)),
    "group SIGTERM": (False, lambda pid: os.killpg(pid, signal.SIGTERM)),
    "kill -9 of the agent": (False, lambda pid: os.kill(pid, signal.SIGKILL)),
}


@pytest.mark.timeout(600)
def test_a_run_told_to_stop_saves_and_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, orphans = {}, 0
    for name, (torchrun, stop) in CASES.items():
        out = tmp_path / name.replace(" ", "_")
        agent = train(out, torchrun=torchrun)
        assert wait_for(lambda out=out: begun(out)), out.with_suffix(".log").read_text()[-3000:]
        stop(agent.pid)
        code = agent.wait(60)
        gone = wait_for(lambda out=out: not alive(str(out)), 30)
        orphans += 0 if gone else len(alive(str(out)))
        status = json.loads((out / "status.json").read_text())
        step = status["step"]
        whole = step is not None and not verify(out / "checkpoints" / f"step-{step:08d}")
        saved[name] = status["status"] == "preempted" and whole
        logged = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert step is None or step - logged[-1] <= 5, (name, step, logged[-1])
        if not torchrun and code >= 0:
            assert code == 75, (name, out.with_suffix(".log").read_text()[-2000:])
    with capsys.disabled():
        print(f"\nR7 {', '.join(saved)}: saved {sum(saved.values())}/{len(saved)}; orphans {orphans}")
    assert all(saved.values()), saved
    assert orphans == 0
