"""A checkpoint is whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unimim.engine.checkpoint import CheckpointError, Checkpoints, Found, verify


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((1000,), float(step)), "count": torch.tensor(step), "on": torch.tensor([True, False])}


def saved(folder: Path, *steps: int, keep: int = 2, losses: dict[int, float] | None = None) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        meta = {"hash": "abc", "loss": (losses or {}).get(step)}
        checkpoints.save(step, tensors(step), {"token": torch.full((3,), float(step))}, meta)
    checkpoints.wait()
    return checkpoints


def loaded(checkpoints: Checkpoints) -> tuple[Found, dict[str, torch.Tensor]]:
    found = checkpoints.newest()
    assert found is not None
    state = {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}
    assert checkpoints.names(found) == {*state}
    checkpoints.load(found, state)
    return found, state


def shard(path: Path) -> Path:
    return next((path / "state").iterdir())


def test_the_newest_is_loaded_and_the_last_two_stay(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 10)
    found, state = loaded(checkpoints)
    assert (found.step, found.meta, found.warnings) == (10, {"hash": "abc", "loss": None}, [])
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors(10).items())
    assert [path.name for path in checkpoints.paths()] == ["step-00000010", "step-00000002"]
    assert (tmp_path / "LATEST").read_text() == "step-00000010"
    assert load_file(found.path / "student.safetensors")["token"].tolist() == [10, 10, 10]
    assert not list(tmp_path.glob(".tmp*"))


def test_the_one_with_the_lowest_loss_stays_too(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3, 4, keep=1, losses={1: 0.5, 2: 0.2, 3: 0.3})
    assert [path.name for path in checkpoints.paths()] == ["step-00000004", "step-00000002"]


def test_what_is_saved_is_what_was_there_when_save_was_called(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path), tensors(5)
    checkpoints.save(5, state, {"token": state["weight"]}, {})
    for tensor in state.values():
        tensor.zero_()
    checkpoints.wait()
    found, read = loaded(checkpoints)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors(5).items())
    assert load_file(found.path / "student.safetensors")["token"].tolist() == [5] * 1000


def test_an_empty_folder_holds_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).newest() is None


@pytest.mark.parametrize("position", [0, 300, 2000, -1])
def test_one_flipped_bit_is_noticed_and_the_older_one_is_taken(tmp_path: Path, position: int) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    path = shard(tmp_path / "step-00000002")
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))
    found, _ = loaded(checkpoints)
    assert found.step == 1
    assert "step-00000002" in found.warnings[0]
    assert "checksum" in found.warnings[0]


def test_truncation_and_missing_manifests_are_noticed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    path = shard(tmp_path / "step-00000002")
    path.write_bytes(path.read_bytes()[:-10])
    assert "size" in verify(tmp_path / "step-00000002")
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint is left"):
        checkpoints.newest()


def test_a_half_written_folder_never_counts(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    half = tmp_path / ".tmp-step-00000002"
    half.mkdir()
    (half / "state").write_bytes(b"half")
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 1
    saved(tmp_path, 2)
    assert not half.exists()


def test_only_whole_checkpoints_count_when_pruning(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, keep=2)
    manifest = tmp_path / "step-00000002" / "manifest.json"
    manifest.write_text(json.dumps({"files": {"student.safetensors": {"bytes": 1, "sha256": ""}}}))
    saved(tmp_path, 3)
    assert (tmp_path / "step-00000001").exists()


def test_a_checkpoint_that_cannot_be_written_says_so_and_the_older_one_stays(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / ".tmp-step-00000002").write_text("a file where the folder should be")
    checkpoints.save(2, tensors(2), {}, {})
    with pytest.raises(CheckpointError, match=r"step 2 could not be written .* older checkpoints stay"):
        checkpoints.wait()
    assert loaded(checkpoints)[0].step == 1


def test_what_crashes_left_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    for name in (".tmp-step-00000002", ".tmp-gone-step-00000000"):
        (tmp_path / name / "state").mkdir(parents=True)
    saved(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-00000001", "step-00000003"]


def test_one_found_damaged_does_not_count_when_pruning(tmp_path: Path) -> None:
    saved(tmp_path, 1, 10)
    path = shard(tmp_path / "step-00000010")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert loaded(checkpoints)[0].step == 1
    for step in (2, 3):
        checkpoints.save(step, tensors(step), {}, {})
    checkpoints.wait()
    assert [path.name for path in checkpoints.paths()] == ["step-00000010", "step-00000003", "step-00000002"]
    checkpoints.save(10, tensors(10), {}, {})
    checkpoints.wait()
    assert loaded(checkpoints)[0].step == 10


def test_a_shard_that_the_manifest_does_not_name_is_noticed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / "step-00000001" / "state" / "more.safetensors").write_bytes(b"")
    assert verify(tmp_path / "step-00000001") == "state/more.safetensors is not in its manifest"
    with pytest.raises(ValueError, match="use another folder, or remove these"):
        checkpoints.newest()


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    manifest = tmp_path / "step-00000001" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 1', '"step": 3'))
    assert "differs from its own checksum" in verify(tmp_path / "step-00000001")
