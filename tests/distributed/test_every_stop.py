"""Two processes that stop after any step, and others that go on from there, end as if there had been no stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from unimim.engine.log import PACE

from .stopping import STEPS, STOPPED, WAYS, Case, main
from .worker import together

PARTS = ("objective/student.", "objective/branches.", "objective/teachers.", "optimizer/")


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run must remember, shard for shard, as bytes: weights, teachers, AdamW's state; and what it logged."""
    shards = sorted((folder / "checkpoints" / f"step-{STEPS:08d}" / "state").iterdir())
    tensors = {f"{name} in {shard.name}": tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert all(any(name.startswith(part) for name in tensors) for part in PARTS), [*tensors]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {f"line {n}": {k: v for k, v in row.items() if k not in PACE} for n, row in enumerate(rows)}
    return logged | {name: (x.dtype, x.shape, x.numpy().tobytes()) for name, x in tensors.items()}


@pytest.mark.slow
def test_stopped_after_any_step_equals_never_stopped_bitwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in ("until they stop", "from there on"):
        together(main, tmp_path)
    different = {}
    for case in STOPPED:
        whole, parts = outcome(Case(case.recipe, case.parallel).folder(tmp_path)), outcome(case.folder(tmp_path))
        names = [name for name in sorted({*whole, *parts}) if whole.get(name) != parts.get(name)]
        if names:
            different[case] = names
    with capsys.disabled():
        workers = "/".join(map(str, sorted({case.workers for case in STOPPED})))
        print(
            f"\nR4 interruptions {len(STOPPED)} (2 processes, workers {workers}, {' and '.join(WAYS)}), "
            f"bitwise equal {len(STOPPED) - len(different)}"
        )
    assert different == {}
