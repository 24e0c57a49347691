"""A checkpoint is whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unimim.engine.checkpoint import Checkpoints, verify

CPU = torch.device("cpu")


def saved(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, {"step": step, "weight": torch.full((1000,), float(step))}, {"hash": "abc"})
    return checkpoints


def test_the_newest_is_loaded_and_the_last_two_stay(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 10)
    found = checkpoints.load(CPU)
    assert found is not None
    state, meta, warnings = found
    assert (state["step"], meta, warnings) == (10, {"hash": "abc"}, [])
    assert [path.name for path in checkpoints.paths()] == ["step-00000010", "step-00000002"]
    assert (tmp_path / "LATEST").read_text() == "step-00000010"
    assert not list(tmp_path.glob(".tmp*"))


def test_an_empty_folder_holds_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).load(CPU) is None


@pytest.mark.parametrize("position", [0, 300, 2000, -1])
def test_one_flipped_bit_is_noticed_and_the_older_one_is_taken(tmp_path: Path, position: int) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    path = tmp_path / "step-00000002" / "state.pt"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))
    found = checkpoints.load(CPU)
    assert found is not None
    state, _, warnings = found
    assert state["step"] == 1
    assert "step-00000002" in warnings[0]
    assert "checksum" in warnings[0]


def test_truncation_and_missing_manifests_are_noticed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    path = tmp_path / "step-00000002" / "state.pt"
    path.write_bytes(path.read_bytes()[:-10])
    assert "size" in verify(tmp_path / "step-00000002")
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint is left"):
        checkpoints.load(CPU)


def test_a_half_written_folder_never_counts(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    half = tmp_path / ".tmp-step-00000002"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    found = checkpoints.load(CPU)
    assert found is not None
    assert found[0]["step"] == 1
    checkpoints.save(2, {"step": 2}, {})
    assert not half.exists()


def test_only_whole_checkpoints_count_when_pruning(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, keep=2)
    manifest = tmp_path / "step-00000002" / "manifest.json"
    manifest.write_text(json.dumps({"files": {"state.pt": {"bytes": 1, "sha256": ""}}}))
    checkpoints.save(3, {"step": 3}, {})
    assert (tmp_path / "step-00000001").exists()
