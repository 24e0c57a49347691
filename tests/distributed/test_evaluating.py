"""Fine-tuning in two processes takes the steps that it takes in one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.test_heads import setting, subject
from unimim.evaluation.finetune import FineTune

PLAIN = ("epochs=2", "batch=20", "mix_chance=0", "optimization.warmup_epochs=0", "student.drop_path=0")


@pytest.mark.slow
def test_finetuning_in_two_processes_and_in_one(tmp_path: Path) -> None:
    one, two = subject(tmp_path / "one"), subject(tmp_path / "two")
    how = setting(tmp_path / "one")
    scores = FineTune.of(one.recipe, PLAIN).measure(one, how)
    changes = [f"finetune.{change}" for change in PLAIN]
    changes += ["linear-beit.epochs=1", "linear-beit.batch=20"]
    command = ["eval", str(two.home), *changes, "run.log_every=1", "--task", "finetune,linear-beit", "--data", how.data]
    command += ["--procs", "2", "--workers", "0", "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "unimim", *command], check=True, capture_output=True)
    rows = [
        [json.loads(line) for line in next(home.glob("eval/finetune-*/metrics.jsonl")).read_text().splitlines()]
        for home in (one.home, two.home)
    ]
    for alone, shared in zip(*rows, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=2e-5)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=2e-4)
        assert shared.get("test") == alone.get("test")
    kept = [json.loads(line) for line in (two.home / "eval.jsonl").read_text().splitlines()]
    assert [row["value"] for row in kept if row["task"] == "finetune"] == [score.value for score in scores]
    assert any(row["task"] == "linear-beit" for row in kept), "a second task in the same processes"
