"""convert, as the command line calls them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from unimim import weights
from unimim.importers import convert


def test_convert(official: Any, tmp_path: Path) -> None:
    """From a training checkpoint with its momentum copy to a weights folder, and on to timm; the report accounts for it."""
    objective, state = official("data2vec")
    model = {name: tensor for name, tensor in state.items() if not name.startswith("model_ema.")}
    momentum = {
        name.removeprefix("model_ema."): tensor for name, tensor in state.items() if name.startswith("model_ema.")
    }
    torch.save({"model": model, "model_ema": momentum, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    done = convert(tmp_path / "a.pth", "data2vec", tmp_path / "w", ["mask.count=6", "mask.min_block=2"])
    again = weights.load(tmp_path / "w").state_dict()
    assert all(again[name].equal(tensor) for name, tensor in objective.state_dict().items())
    report = str(done)
    assert f"loaded   {len(done.loaded)} tensors" in report
    assert "ignored  2" in report
    assert "rel_pos_bias.relative_position_index: fixed table, computed by unimim (largest difference 0)" in report
    assert "missing  0" in report
    assert "ViT of 2 blocks, 32 wide, 32x32 pixels, 4x4 patches" in report


def test_convert_an_encoder(official: Any, tmp_path: Path) -> None:
    objective, state = official("mae")
    torch.save(
        {"model": {name: t for name, t in state.items() if "decoder" not in name and name != "mask_token"}},
        tmp_path / "a.pth",
    )
    told = ["student.num_heads=2", "head.dim=16", "head.depth=1", "head.num_heads=2"]
    with pytest.raises(
        ValueError, match=r"a.pth: no tensors of the head; the decoder is in the file whose name ends in _full.pth"
    ):
        convert(tmp_path / "a.pth", "mae", tmp_path / "w", told)
    assert not (tmp_path / "w").exists()
    done = convert(tmp_path / "a.pth", "mae", tmp_path / "w", told, allow_missing_head=True)
    assert f"missing  {len(done.fresh)}, which start afresh:" in str(done)
    ours = weights.load_student(tmp_path / "w").state_dict()
    assert all(ours[name].equal(tensor) for name, tensor in objective.student.state_dict().items())


def test_convert_another_part(official: Any, tmp_path: Path) -> None:
    _, state = official("beit")
    averaged = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": averaged}, tmp_path / "a.pth")
    told = ["teacher.num_hidden=4", "mask.count=6", "mask.min_block=2"]
    convert(tmp_path / "a.pth", "beit", tmp_path / "w", told, key="model_ema")
    assert weights.load(tmp_path / "w").student.state_dict()["prefix"].equal(state["cls_token"] + 1)


def test_unknown_importer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown importer 'may', did you mean 'mae'"):
        convert(tmp_path / "a.pth", "may", tmp_path / "w")
