"""R8. A process that stopped, a loader worker that stopped, a process that sleeps: named, and the run ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from .processes import alive, begun, ranks, train, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
LIMIT = 15.0


def workers_of(process: int) -> list[int]:
    children = (Path("/proc") / str(process) / "task" / str(process) / "children").read_text()
    return [int(child) for child in children.split()]


@pytest.mark.timeout(600)
def test_hangs_are_named_and_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named, late, gone = [], [], []
    for case in ("rank 1", "worker of rank 0"):
        out = tmp_path / case.replace(" ", "_")
        agent = train(out, f"run.hang_minutes={LIMIT / 60}", "run.workers=1")
        assert wait_for(lambda out=out: begun(out)), out.with_suffix(".log").read_text()[-3000:]
        group = ranks(str(out))
        victims = [group[1]] if case == "rank 1" else workers_of(group[0])
        for victim in victims:
            os.kill(victim, signal.SIGSTOP)
        stopped = time.monotonic()
        said = wait_for(lambda out=out: json.loads((out / "status.json").read_text())["status"] == "failed", LIMIT + 20)
        late.append(time.monotonic() - stopped - LIMIT)
        reason = json.loads((out / "status.json").read_text())["reason"]
        wanted = "process 1 of 2 does not answer" if case == "rank 1" else "process 0 of 2 is behind, in phase data"
        named.append(said and wanted in reason)
        gone.append(wait_for(lambda out=out: not alive(str(out)), 15))
        agent.wait(30)
        assert named[-1], reason
    with capsys.disabled():
        print(
            f"\nR8 hangs {len(named)}, detected {len(late)}, named {sum(named)}/{len(named)}, "
            f"at most {max(late):.1f} s after the limit of {LIMIT:g} s, processes gone {sum(gone)}/{len(gone)}"
        )
    assert all(gone)
