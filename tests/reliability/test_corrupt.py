"""No flipped bit and no cut file of a checkpoint is loaded as if it were whole; the older one is taken, and it is said why."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unimim.engine.checkpoint import Checkpoints

TRIALS = 200


def tensors(step: int) -> dict[str, torch.Tensor]:
    """As small as the manifest and the headers, so that these are hit as often."""
    generator = torch.Generator().manual_seed(step)
    return {f"block.{part}.weight": torch.randn(4, 8, generator=generator) for part in range(3)}


def content(checkpoints: Checkpoints) -> tuple[int, dict[str, Any], dict[str, torch.Tensor], list[str]]:
    """What resuming would give: step, meta, tensors, warnings."""
    found = checkpoints.newest()
    assert found is not None
    state = {name: torch.zeros(4, 8) for name in checkpoints.names(found)}
    checkpoints.load(found, state)
    student = {f"student/{name}": tensor for name, tensor in load_file(found.path / "student.safetensors").items()}
    return found.step, found.meta, state | student, found.warnings


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    two = Checkpoints(tmp_path)
    for step in (1, 2):
        two.save(step, tensors(step), tensors(step), {"hash": "1f2e", "loss": 0.5 / step})
    two.wait()
    return two


def test_every_flip_and_every_cut_is_noticed(checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    step, meta, before, warnings = content(checkpoints)
    assert (step, warnings) == (2, [])
    newest = checkpoints.paths()[0]
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert [path.name[:6] for path in files] == ["manife", "shard-", "studen"]
    draws = random.Random(0)
    counts = {kind: {"detected": 0, "harmless": 0, "silent": 0} for kind in ("flip", "cut")}
    hit = set()
    for trial in range(2 * TRIALS):
        kind, path = ("flip", "cut")[trial % 2], files[draws.randrange(len(files))]
        whole = path.read_bytes()
        position = draws.randrange(len(whole))
        flipped = bytes([whole[position] ^ 1 << draws.randrange(8)])
        path.write_bytes(whole[:position] + (flipped + whole[position + 1 :] if kind == "flip" else b""))
        step, found, state, warnings = content(checkpoints)
        path.write_bytes(whole)
        hit.add((kind, path))
        if step == 1 and len(warnings) == 1 and str(newest) in warnings[0] and path.name in warnings[0]:
            counts[kind]["detected"] += 1
        elif (step, found) == (2, meta) and all(torch.equal(state[name], tensor) for name, tensor in before.items()):
            counts[kind]["harmless"] += 1
        else:
            counts[kind]["silent"] += 1
    flips, cuts = counts["flip"], counts["cut"]
    with capsys.disabled():
        print(
            f"\nR3 bit flips {TRIALS}, detected {flips['detected']}, harmless {flips['harmless']}, silently wrong "
            f"{flips['silent']}; truncations {TRIALS}, detected {cuts['detected']}; fell back to the older checkpoint "
            f"{flips['detected'] + cuts['detected']}/{2 * TRIALS}"
        )
    assert len(hit) == 2 * len(files)
    assert content(checkpoints)[0] == 2
    assert flips["silent"] == cuts["silent"] == cuts["harmless"] == 0
    assert flips["detected"] + flips["harmless"] == cuts["detected"] == TRIALS
    assert flips["harmless"] < TRIALS // 20
