"""Folders as open_clip saves them, and arrays that the official code computed, from tests/data or UNIMIM_GOLDENS."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

from unimim.testing import Golden

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))
PIXELS = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}


def save(folder: Path, model: dict[str, Any], state: dict[str, torch.Tensor] | None = None) -> Path:
    """The folder with a CLIP of open_clip's configuration `model`, with the tensors of `state` or random ones."""
    folder.mkdir(exist_ok=True)
    clip = CLIP(**model)
    if state is not None:
        clip.load_state_dict(state)
    described = {"model_cfg": model, "preprocess_cfg": PIXELS}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random: two blocks, 16 wide, 8-pixel patches, an embedding of 8 numbers."""
    image = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("clip"), {"embed_dim": 8, "vision_cfg": image, "text_cfg": text})


@pytest.fixture(
    params=sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem.startswith("milan")) or ["milan"],
    scope="session",
)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read(request.param)


@pytest.fixture(scope="session")
def official_clip(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher of the golden file, an official CLIP, in open_clip's format."""
    sizes = golden.config["clip"]
    image = {"image_size": sizes["image_resolution"], "layers": sizes["vision_layers"], "width": sizes["vision_width"]}
    image |= {"patch_size": sizes["vision_patch_size"], "head_width": 64}
    text = {key: sizes[key] for key in ("context_length", "vocab_size")}
    text |= {key: sizes[f"transformer_{key}"] for key in ("width", "heads", "layers")}
    model = {"embed_dim": sizes["embed_dim"], "vision_cfg": image, "text_cfg": text, "quick_gelu": True}
    return save(tmp_path_factory.mktemp("official"), model, golden.under("teacher_state/"))


@pytest.fixture
def piece() -> Callable[[str], Golden]:
    """piece("milan_masking") is the file piece_milan_masking.npz."""
    return lambda name: read(f"piece_{name}")


def read(name: str) -> Golden:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.fail(f"no file {path}; UNIMIM_GOLDENS names the folder")
    return Golden(path)
