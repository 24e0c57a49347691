"""export, as the command line calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unimim import Objective, load, weights
from unimim.engine.checkpoint import Checkpoints
from unimim.exporters import timm as exporter
from unimim.exporters.command import export

SMALL = ["student.image_size=32", "student.patch_size=8", "student.dim=32", "student.depth=1", "student.num_heads=2"]


@pytest.fixture
def objective() -> Objective:
    torch.manual_seed(0)
    return Objective(load("mae-micro", [*SMALL, "head.dim=16", "head.depth=1", "head.num_heads=2"]))


def test_export_from_runs(objective: Objective, tmp_path: Path) -> None:
    """A finished run has weights; an unfinished one its newest checkpoint."""
    weights.save(objective, tmp_path / "done" / "weights")
    finished = export(tmp_path / "done", "timm", tmp_path / "a")
    assert finished.files == ("config.json", "model.safetensors")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [*finished.files]
    assert f'timm.create_model("local-dir:{tmp_path / "a"}", pretrained=True)' in str(finished)
    going = tmp_path / "going"
    (going / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no checkpoint yet"):
        export(going, "timm", tmp_path / "b")
    checkpoints = Checkpoints(going / "checkpoints")
    checkpoints.save(1, {}, objective.student.state_dict(), {})
    checkpoints.close()
    (going / "config.yaml").write_text(objective.recipe.yaml(), encoding="utf-8")
    assert export(going, "timm", tmp_path / "b").difference == finished.difference
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_nothing_unchecked_is_left(objective: Objective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before stays, and a folder made for the export goes."""
    weights.save(objective, tmp_path / "w")
    export(tmp_path / "w", "timm", tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    renamed = exporter._shared

    def wrong(state: Any) -> Any:
        return {name: tensor + 0.1 for name, tensor in renamed(state).items()}

    monkeypatch.setattr(exporter, "_shared", wrong)
    for out in ("old", "new"):
        with pytest.raises(ValueError, match=r"differs from the student"):
            export(tmp_path / "w", "timm", tmp_path / out)
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot export to 'tim', did you mean 'timm'"):
        export(tmp_path, "tim", tmp_path / "w")
    with pytest.raises(ValueError, match=r"not a whole weights folder"):
        export(tmp_path, "timm", tmp_path / "w")
    assert not (tmp_path / "w").exists()
