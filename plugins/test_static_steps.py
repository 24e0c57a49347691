"""No micro recipe of a plugin waits for the device, and each plugin's student compiles to one graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

from unimim import load, plugins
from unimim.recipes.micro import TEACHER
from unimim.testing import check_static_step

MICRO = [
    name
    for name, entry in plugins()["recipes"].entries.items()
    if entry.plugin.startswith("unimim-") and name.endswith("-micro")
]
STUDENTS = {load(name).student.name: name for name in reversed(MICRO)}
"""The first micro recipe of each kind of student."""


@pytest.fixture(autouse=True)
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random two-block CLIP where micro recipes look for theirs."""
    folder = tmp_path / TEACHER
    folder.mkdir(parents=True)
    image = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    pixels = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    described = {"model_cfg": {"embed_dim": 8, "vision_cfg": image, "text_cfg": text}, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file(CLIP(8, image, text).state_dict(), folder / "open_clip_model.safetensors")
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", MICRO)
def test_no_recipe_waits_for_the_device(name: str) -> None:
    check_static_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("student", sorted({*STUDENTS} - {"vit", "swin"}))
def test_each_kind_of_student_compiles_to_one_graph(student: str) -> None:
    check_static_step(STUDENTS[student], compiled=True)
