"""Exports to timm: every kind of student, reloaded and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from unimim import View
from unimim.importers import export_timm
from unimim.importers import timm as exporter
from unimim.students.vit import ViT

BASE = {"image_size": 32, "patch_size": 8, "dim": 32, "depth": 2, "num_heads": 4}


def student(**config: Any) -> ViT:
    torch.manual_seed(0)
    built = ViT.Config.model_validate({**BASE, **config}).build()
    assert isinstance(built, ViT)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built


STUDENTS: dict[str, dict[str, Any]] = {
    "mae": {"positions": "sincos", "masking": "drop"},
    "layer_scale": {"layer_scale": 0.1},
    "beit": {"relative_positions": "shared", "positions": "none", "qkv_bias": "qv", "layer_scale": 0.1},
    "beit_absolute": {"qkv_bias": "qv"},
    "per_block": {"relative_positions": "per_block", "positions": "learned", "qkv_bias": "qv"},
    "relative_key_bias": {"relative_positions": "shared", "positions": "sincos"},
    "relative_no_bias": {"relative_positions": "shared", "qkv_bias": "none", "mlp_ratio": 2},
    "registers": {"num_registers": 3},
    "no_class_token": {"class_token": False},
    "registers_only": {"class_token": False, "num_registers": 2},
    "no_bias": {"qkv_bias": "none", "positions": "none"},
    "no_final_norm": {"final_norm": False},
    "gray": {"channels": 1, "mean": [0.4], "std": [0.2]},
    "not_square": {"image_size": [32, 48], "patch_size": [8, 16]},
    "not_square_relative": {
        "image_size": [32, 48],
        "patch_size": [8, 16],
        "relative_positions": "shared",
        "qkv_bias": "qv",
    },
}


@pytest.mark.parametrize("name", STUDENTS)
def test_the_timm_model_is_the_student(tmp_path: Path, name: str) -> None:
    ours = student(**STUDENTS[name])
    difference = export_timm(ours, tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(model)
    images = torch.rand(3, ours.config.channels, *ours.geometry.image)
    pixels = (images - torch.tensor(data["mean"]).view(-1, 1, 1)) / torch.tensor(data["std"]).view(-1, 1, 1)
    with torch.no_grad():
        seen, encoded = model.forward_features(pixels), ours.eval()(View(images))
    own = torch.cat([encoded.prefix, encoded.tokens], 1)
    assert own.abs().max() > 0.5
    torch.testing.assert_close(seen, own, rtol=0, atol=1e-5 * float(own.abs().max()))
    assert difference < 1e-4
    assert type(model).__name__ == (
        "Beit" if "beit" in json.loads((tmp_path / "config.json").read_text())["architecture"] else "VisionTransformer"
    )


def test_exported_models_can_be_fine_tuned(tmp_path: Path) -> None:
    """With a new classifier on the class token or on mean patches, as timm users make them."""
    for name, pool in (("mae", "token"), ("mae", "avg"), ("beit", "avg")):
        export_timm(student(**STUDENTS[name]), tmp_path / name)
        model = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True, num_classes=5, global_pool=pool)
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)


def test_a_student_in_training_stays_in_training(tmp_path: Path) -> None:
    ours = student(drop_path=0.5, attention_dropout=0.5).train()
    assert export_timm(ours, tmp_path) < 1e-4
    assert ours.training


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"eps": 1e-5}, "student.eps: 1e-05"),
        ({"relative_positions": "shared", "class_token": False}, "student.class_token"),
        ({"qkv_bias": "qv", "num_registers": 1}, "student.num_registers: 1"),
        ({"relative_positions": "per_block", "final_norm": False}, "student.final_norm"),
    ],
)
def test_what_timm_cannot_express(tmp_path: Path, config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=rf"timm has no such model: {field}"):
        export_timm(student(**config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_differs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Had timm another layer scale than ours, the comparison would say so."""
    renamed = exporter._shared

    def wrong(state: Any) -> Any:
        return {name: tensor * 1.01 if "ls1" in name else tensor for name, tensor in renamed(state).items()}

    monkeypatch.setattr(exporter, "_shared", wrong)
    with pytest.raises(ValueError, match=r"differs from the student by .*; do not use it"):
        export_timm(student(**STUDENTS["layer_scale"]), tmp_path)
