"""R9. A step that gives no number is not taken, by any process, and leaves what is needed to see it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.worker import together
from unimim.engine.data.loader import order

from .poison import KINDS, STEP, Kind, Training, main

CPU = torch.device("cpu")


@pytest.mark.slow
def test_no_step_is_taken_all_agree_and_it_can_be_seen_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in KINDS:
        said = Training(kind, tmp_path / "one" / kind).start(CPU)
        assert f"not a number by step {STEP} " in said
    (tmp_path / "two").mkdir()
    together(main, tmp_path / "two")
    agreeing = [json.loads((tmp_path / "two" / f"said-{rank}.json").read_text()) for rank in (0, 1)]
    for said in agreeing:
        assert all(f"not a number by step {STEP} " in said[kind] for kind in KINDS)
    runs = [Training(kind, tmp_path / world / kind) for world in ("one", "two") for kind in KINDS]
    extra = sum(run.steps_taken() - STEP for run in runs)
    replayed = sum(run.replays() for run in runs)
    names = json.loads((tmp_path / "two" / "pixel" / "nonfinite" / f"step-{STEP}-rank-1.json").read_text())["images"]
    assert names[-1] == f"noise/{runs[0].victim}.png"
    with capsys.disabled():
        print(
            f"\nR9 injected {len(runs)}, optimizer steps taken {extra}, ranks agreeing {len(agreeing)}/2, "
            f"replays {replayed}/{len(runs)}"
        )
    assert (extra, replayed) == (0, len(runs))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_may_be_left_out(tmp_path: Path, kind: Kind) -> None:
    """The image comes once in an epoch, unless it is among those that make no whole batch."""
    training = Training(kind, tmp_path, skip_nonfinite=1)
    with pytest.raises(AssertionError, match="every step gave a number"):
        training.start(CPU)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    plan = training.plan
    seen = [order(plan.seed, epoch, plan.num_images)[: plan.batch * plan.steps_per_epoch] for epoch in range(3)]
    assert sum(row.get("skipped", 0) for row in rows) == sum(training.victim in images for images in seen) >= 1
    assert all(torch.isfinite(tensor).all() for tensor in training.objective.state_dict().values())
