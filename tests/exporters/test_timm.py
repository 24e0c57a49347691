"""Exports to timm: every kind of student, reloaded and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from unimim import View
from unimim.exporters import timm as exporter
from unimim.exporters.timm import export_timm

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


SWINS: dict[str, dict[str, Any]] = {
    "swin": {},
    "swin_drop": {"masking": "drop"},
    "swin_wide_window": {"window": 16},
    "swin_not_square": {"image_size": [32, 64], "window": 4},
    "swin_gray": {"channels": 1, "mean": [0.4], "std": [0.2], "mlp_ratio": 2},
    "swin_one_stage": {"depths": [3], "num_heads": [2]},
}


@pytest.mark.parametrize("name", [*STUDENTS, *SWINS])
def test_the_timm_model_is_the_student(trained: Any, tmp_path: Path, name: str) -> None:
    made = trained("swin", **SWINS[name]) if name in SWINS else trained(**STUDENTS[name])
    ours = made.student
    difference = export_timm(made, tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(model)
    images = torch.rand(3, ours.config.channels, *ours.geometry.image)
    pixels = (images - torch.tensor(data["mean"]).view(-1, 1, 1)) / torch.tensor(data["std"]).view(-1, 1, 1)
    with torch.no_grad():
        seen, encoded = model.forward_features(pixels), ours.eval()(View(images))
    own = torch.cat([encoded.prefix, encoded.tokens], 1)
    assert own.abs().max() > 0.5
    if name in SWINS:
        seen = seen.flatten(1, 2)
    torch.testing.assert_close(seen, own, rtol=0, atol=1e-5 * float(own.abs().max()))
    assert difference < 1e-4
    architecture = json.loads((tmp_path / "config.json").read_text())["architecture"]
    classes = {"beit": "Beit", "vit": "VisionTransformer", "swin": "SwinTransformer"}
    assert type(model).__name__ == classes[architecture.partition("_")[0]]


def test_exported_models_can_be_fine_tuned(trained: Any, tmp_path: Path) -> None:
    """With a new classifier on the class token or on mean patches, as timm users make them."""
    for name, pool in (("mae", "token"), ("mae", "avg"), ("beit", "avg"), ("swin", "avg")):
        export_timm(trained("swin") if name == "swin" else trained(**STUDENTS[name]), tmp_path / name)
        model = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True, num_classes=5, global_pool=pool)
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)


def test_a_student_in_training_stays_in_training(trained: Any, tmp_path: Path) -> None:
    made = trained(drop_path=0.5, attention_dropout=0.5)
    made.student.train()
    assert export_timm(made, tmp_path) < 1e-4
    assert made.student.training


@pytest.mark.parametrize(
    ("name", "config", "field"),
    [
        ("vit", {"eps": 1e-5}, "student.eps: 1e-05"),
        ("vit", {"relative_positions": "shared", "class_token": False}, "student.class_token"),
        ("vit", {"qkv_bias": "qv", "num_registers": 1}, "student.num_registers: 1"),
        ("vit", {"relative_positions": "per_block", "final_norm": False}, "student.final_norm"),
        ("swin", {"eps": 1e-6}, "student.eps: 1e-06"),
        ("swin", {"image_size": [16, 32], "window": 4}, "student.image_size"),
    ],
)
def test_what_timm_cannot_express(trained: Any, tmp_path: Path, name: str, config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=rf"timm has no such model: {field}.*Use --to torch"):
        export_timm(trained(name, **config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_differs_is_an_error(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Had timm another layer scale than ours, the comparison would say so."""
    renamed = exporter._shared

    def wrong(state: Any) -> Any:
        return {name: tensor * 1.01 if "ls1" in name else tensor for name, tensor in renamed(state).items()}

    monkeypatch.setattr(exporter, "_shared", wrong)
    with pytest.raises(ValueError, match=r"differs from the student by .*; do not use it"):
        export_timm(trained(**STUDENTS["layer_scale"]), tmp_path)
