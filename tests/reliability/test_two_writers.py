"""R16. A folder has one writer; one that died does not hold it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from unimim.engine.folder import only_writer, read_status, write_status

from .processes import begun, train, wait_for


def hold(folder: Path) -> int:
    """A process that holds `folder` until it is killed; its number, once it does."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with only_writer(folder):
            os.write(write, b"x")
            signal.pause()
        os._exit(0)
    assert os.read(read, 1) == b"x"
    return child


def test_a_second_writer_is_refused_and_a_dead_one_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = hold(tmp_path)
    refused = 0
    with pytest.raises(ValueError, match=f"is being written by process {child} on ") as caught, only_writer(tmp_path):
        pass
    refused += "another folder" in str(caught.value)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with only_writer(tmp_path):
        taken = int(str(os.getpid()) in (tmp_path / ".lock").read_text())
    with capsys.disabled():
        print(f"\nR16 second writer refused {refused}/1; lock of a dead process taken over {taken}/1")
    assert (refused, taken) == (1, 1)


def test_status_says_how_a_run_ended(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    write_status(tmp_path, "preempted", 7)
    status = read_status(tmp_path)
    assert (status["status"], status["step"], status["exit_code"]) == ("preempted", 7, 75)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_refused_run_of_two_processes_leaves_the_live_ones_status(tmp_path: Path) -> None:
    out = tmp_path / "run"
    live = train(out)
    assert wait_for(lambda: begun(out)), out.with_suffix(".log").read_text()[-3000:]
    before = read_status(out)
    (tmp_path / "link").symlink_to(out)
    second = train(tmp_path / "link")
    assert second.wait(90) != 0
    assert "is being written by process" in (tmp_path / "link.log").read_text()
    assert read_status(out) == before
    os.kill(live.pid, signal.SIGTERM)
    live.wait(60)
    assert read_status(out)["status"] == "preempted"
