"""R8. A process that stopped, a loader worker that stopped, a process that sleeps: named, and the run ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.plugins.installed import write

from .processes import alive, begun, ranks, train, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
LIMIT = 15.0
WANTED = {
    "rank 1 stopped": "process 1 of 2 does not answer",
    "worker of rank 0 stopped": "process 0 of 2 is behind, in phase data",
    "rank 1 asleep": "process 1 of 2 is behind, in phase step",
}
SLEEPER = """
import os
import time
from pathlib import Path
from typing import Literal

from unimim import hookimpl
from unimim.teachers.pixel import Pixel


class Sleeper(Pixel):
    class Config(Pixel.Config):
        name: Literal["sleeper"] = "sleeper"

    def forward(self, view, mask=None):
        if os.environ["RANK"] == "1" and Path(__file__).with_name("sleep").exists():
            time.sleep(3600)
        return super().forward(view, mask)


@hookimpl
def unimim_teachers():
    return {"sleeper": Sleeper}
"""
"""Pixels as the target; once a file is there, process 1 sleeps instead of giving them, and all its other threads live on."""


def workers_of(process: int) -> list[int]:
    children = (Path("/proc") / str(process) / "task" / str(process) / "children").read_text()
    return [int(child) for child in children.split()]


@pytest.mark.timeout(600)
def test_hangs_are_named_and_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = write(tmp_path / "site", "sleeper", {"__init__.py": SLEEPER})
    named, late, gone = [], [], []
    for case, wanted in WANTED.items():
        out = tmp_path / case.replace(" ", "_")
        agent = train(out, "teacher.name=sleeper", f"run.hang_minutes={LIMIT / 60}", "run.workers=1", plugin=plugin)
        assert wait_for(lambda out=out: begun(out)), out.with_suffix(".log").read_text()[-3000:]
        group = ranks(str(out))
        if case == "rank 1 asleep":
            (plugin / "sleep").touch()
        else:
            for victim in workers_of(group[0]) if "worker" in case else [group[1]]:
                os.kill(victim, signal.SIGSTOP)
        stopped = time.monotonic()
        said = wait_for(lambda out=out: json.loads((out / "status.json").read_text())["status"] == "failed", LIMIT + 20)
        late.append(time.monotonic() - stopped - LIMIT)
        reason = json.loads((out / "status.json").read_text())["reason"]
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
