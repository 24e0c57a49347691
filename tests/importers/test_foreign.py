"""Reading files of other projects: nesting, prefixes, and never running what they hold."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unimim.foreign import read_parts
from unimim.importers import read_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3)}


class Attack:
    """Unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.target),)


def written(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_official_training_checkpoints(tmp_path: Path, legacy: bool) -> None:
    """Arguments, optimizer and momentum copy beside the model, as MAE, BEiT and data2vec write them."""
    content = {
        "model": WEIGHTS,
        "model_ema": {"a.weight": torch.zeros(2, 3)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1),
        "epoch": 3,
    }
    path = written(tmp_path / "a.pth", content, _use_new_zipfile_serialization=not legacy)
    assert set(read_parts(path)) == {"model", "model_ema"}
    assert read_checkpoint(path)["a.weight"].equal(WEIGHTS["a.weight"])
    assert not read_checkpoint(path, "model_ema")["a.weight"].any()
    with pytest.raises(ValueError, match=r"no part 'ema'; choose one of its own parts .*'model', 'model_ema'"):
        read_checkpoint(path, "ema")


@pytest.mark.parametrize("key", ["state_dict", "module", "model", "model_state", ""])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_nesting_and_prefixes(tmp_path: Path, key: str, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in WEIGHTS.items()}
    path = written(tmp_path / "a.pth", {key: state} if key else state)
    assert list(read_checkpoint(path)) == ["a.weight"]


def test_a_checkpoint_of_lightning_names_its_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As VQGAN's: the state of ModelCheckpoint under its class, which is not installed when the file is read."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})  # type: ignore[attr-defined]
    saved = {
        "state_dict": {"a.weight": torch.ones(2)},
        "callbacks": {module.ModelCheckpoint: {"best": 0.5}},
        "epoch": 3,
    }
    with monkeypatch.context() as patch:
        for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
            patch.setitem(sys.modules, part, module)
        torch.save(saved, tmp_path / "last.ckpt")
    assert "pytorch_lightning" not in sys.modules
    assert read_checkpoint(tmp_path / "last.ckpt")["a.weight"].equal(torch.ones(2))


def test_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors")["a.weight"].equal(WEIGHTS["a.weight"])


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path, form: str) -> None:
    content, path = {"model": WEIGHTS, "args": Attack(tmp_path / "pwned")}, tmp_path / "evil.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        written(path, content, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"evil.pth (refused: beside tensors it holds posix.mkdir|is damaged)"):
        read_checkpoint(path)
    assert not (tmp_path / "pwned").exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds torch.nn.modules.linear.Linear, and loading that could run code"):
        read_checkpoint(written(tmp_path / "a.pth", torch.nn.Linear(1, 1)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "damaged or not a torch file"),
        ("a.pth", b"hello", "damaged or not a torch file"),
        ("a.safetensors", b"hello", "not a whole safetensors file"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, kept: float) -> None:
    path = written(tmp_path / "a.pth", {"model": WEIGHTS})
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"damaged"):
        read_checkpoint(path)


def test_files_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no state dict; its keys are epoch"):
        read_checkpoint(written(tmp_path / "a.pth", {"epoch": 1}))
    with pytest.raises(ValueError, match=r"holds list, not a state dict"):
        read_checkpoint(written(tmp_path / "b.pth", [1]))
    with pytest.raises(ValueError, match=r"no file"):
        read_checkpoint(tmp_path / "c.pth")
