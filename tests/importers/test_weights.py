"""Weights folders: what is saved comes back, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unimim import Objective, load, weights
from unimim.importers import read_weights

SMALL = ["student.dim=32", "student.depth=2", "student.num_heads=2", "student.image_size=32"]


def small(seed: int = 0, *overrides: str) -> Objective:
    torch.manual_seed(seed)
    return Objective(load("data2vec-micro", [*SMALL, "teacher.layers=[0,1]", *overrides]))


def tampered(folder: Path, change: Any) -> None:
    path = folder / weights.TENSORS
    state = load_file(path)
    change(state)
    save_file(state, path)


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(ours[name].equal(theirs[name]) for name in ours)


def test_round_trip(tmp_path: Path) -> None:
    objective = small()
    for parameter in objective.teachers.parameters():
        parameter.add_(1)  # a momentum copy that differs from its student
    weights.save(objective, tmp_path / "w")
    again = weights.load(tmp_path / "w")
    assert again.recipe == objective.recipe
    assert equal(again, objective)
    assert equal(weights.load_student(tmp_path / "w"), objective.student)
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == [weights.TENSORS, weights.RECIPE]


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    weights.save(small(), tmp_path / "w")
    modes = {path.stat().st_mode for path in [tmp_path / "plain", *(tmp_path / "w").iterdir()]}
    assert len(modes) == 1


def test_saving_again_replaces(tmp_path: Path) -> None:
    weights.save(small(0), tmp_path)
    weights.save(small(1), tmp_path)
    assert equal(weights.load(tmp_path), small(1))


def test_an_interrupted_save_leaves_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.save(small(0), tmp_path)

    def full_disk(*arguments: Any) -> None:
        Path(arguments[1]).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError, match=r"no space"):
        weights.save(small(1), tmp_path)
    assert equal(weights.load(tmp_path), small(0))
    with pytest.raises(OSError, match=r"no space"):
        weights.save(small(1, "student.depth=3"), tmp_path)
    with pytest.raises(ValueError, match=r"not a whole weights folder: it has no recipe.yaml"):
        weights.load(tmp_path)


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    """Two names of one tensor, a slice and a transpose come back equal, and nothing else is written."""
    base = torch.arange(12.0).view(3, 4)
    state: dict[str, Tensor] = {
        "whole": base,
        "again": base,
        "slice": base[1],
        "turned": base.T,
        "none": base[:0],
        "nil": base[:0],
    }
    weights.write_tensors(tmp_path / "a.safetensors", state)
    read = load_file(tmp_path / "a.safetensors")
    assert set(read) == set(state)
    assert all(read[name].equal(tensor) for name, tensor in state.items())
    assert (tmp_path / "a.safetensors").stat().st_size < 4 * (12 * 3 + 4) + 600


def test_every_misfit_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    weights.save(small(), tmp_path)

    def change(state: dict[str, Tensor]) -> None:
        state["student.extra"] = state.pop("student.norm.bias")
        state["branches.mim.head.proj.weight"] = torch.zeros(3, 3)

    tampered(tmp_path, change)
    with pytest.raises(ValueError, match=r"does not fit its recipe.yaml") as raised:
        weights.load(tmp_path)
    assert "1 missing: student.norm.bias" in str(raised.value)
    assert "1 unexpected: student.extra" in str(raised.value)
    assert "1 of another shape: branches.mim.head.proj.weight (3, 3), wanted (32, 32)" in str(raised.value)
    with pytest.raises(ValueError, match=r"does not fit the student"):
        weights.load_student(tmp_path)


def test_the_student_needs_no_teacher(tmp_path: Path) -> None:
    weights.save(small(), tmp_path)
    tampered(tmp_path, lambda state: [state.pop(name) for name in [*state] if not name.startswith("student.")])
    assert equal(weights.load_student(tmp_path), small().student)
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more"):
        weights.load(tmp_path)


def test_a_plugin_reads_recipe_and_tensors_without_building_anything(tmp_path: Path) -> None:
    objective = small()
    weights.save(objective, tmp_path)
    recipe, tensors = read_weights(tmp_path)
    assert recipe == objective.recipe
    assert {*tensors} == {*objective.training_state()}
    assert all(tensors[name].equal(value) for name, value in objective.training_state().items())


def test_damaged_and_absent_files(tmp_path: Path) -> None:
    weights.save(small(), tmp_path)
    path = tmp_path / weights.TENSORS
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"objective.safetensors is damaged"):
        weights.load(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no objective.safetensors"):
        weights.load(tmp_path)
    with pytest.raises(ValueError, match=r"has no recipe.yaml"):
        weights.load(tmp_path / "elsewhere")


@pytest.mark.parametrize("seed", [0, 1])
def test_saving_is_deterministic(tmp_path: Path, seed: int) -> None:
    weights.save(small(seed), tmp_path / "a")
    weights.save(small(seed), tmp_path / "b")
    assert (tmp_path / "a" / weights.TENSORS).read_bytes() == (tmp_path / "b" / weights.TENSORS).read_bytes()
